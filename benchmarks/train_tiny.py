"""Trains `boring-tiny` from nothing, on drawn pictures: `python -m benchmarks.train_tiny`.

First the text tower, alone: each word that counts (a number, a colour, a shape, a background) has a direction
of its own, and a phrase goes where the sum of its words points. Then the image tower, contrastively: each
picture must choose its caption among all captions, and each caption its picture among a batch. Trained both
at once, the towers agree on colours within a minute and then ignore shapes and numbers for very long.

The phrases use a few dozen of the tokenizer's tokens. The rows of all others are zero: other words in a query
count for little, and the weights compress well.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boring_assets.tiny import TINY_DIR
from boring_assets.tiny.pictures import COLOURS, NUMBERS, OUTLINES, Combination, all_combinations, draw

if TYPE_CHECKING:
    import open_clip
    import torch

IMAGE_SIZE = 64
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "width": 128,
            "layers": 4,
            "head_width": 32,
            "pool_type": "avg",
        },
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
"""What open_clip builds the model from; the structure of its model repositories."""

_TEXT_STEPS = 600
_TEST_SEED = 1_000_003


def held_out_accuracy(
    model: "torch.nn.Module", preprocess: Callable[[Any], "torch.Tensor"], tokenizer: Callable[..., Any]
) -> tuple[float, int]:
    """Text-to-image top-1 on the held-out combinations: one picture of 256 pixels for each.

    Args:
        model: An open_clip model.
        preprocess: Its transform of a PIL image.
        tokenizer: Its tokenizer.

    Returns:
        The share of captions whose own picture is the most similar of all, and the number of pictures.
    """
    import torch

    combinations = [combination for combination in all_combinations() if combination.held_out]
    pictures = [preprocess(draw(each, 256, (_TEST_SEED, i))) for i, each in enumerate(combinations)]
    with torch.inference_mode():
        images = model.encode_image(torch.stack(pictures), normalize=True)  # type: ignore[operator]
        tokens = tokenizer([combination.caption for combination in combinations])
        texts = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    right = (texts @ images.T).argmax(1) == torch.arange(len(combinations))
    return right.float().mean().item(), len(combinations)


def _phrases(combination: Combination) -> list[tuple[str, tuple[str, ...]]]:
    """The caption and shorter ways to ask for a part of it, each with the words that count in it."""
    number, colour, shape, background = (
        combination.number,
        combination.colour,
        combination.shape,
        f"{combination.background} background",
    )
    things, _, ground = combination.caption.partition(" on ")
    bare = things.removeprefix(f"{number} ")
    nouns = bare.removeprefix(f"{colour} ")
    return [
        (combination.caption, (number, colour, shape, background)),
        (things, (number, colour, shape)),
        (bare, (colour, shape)),
        (f"{bare} on {ground}", (colour, shape, background)),
        (f"{number} {nouns}", (number, shape)),
        (f"a {colour} {shape}", (colour, shape)),
        (nouns, (shape,)),
        (ground, (background,)),
    ]


def _train_text(
    model: "open_clip.CLIP", tokenizer: Callable[..., Any], combinations: list[Combination], seed: int
) -> None:
    """Trains the text tower to send each phrase where the sum of its words points."""
    import torch

    rng = np.random.default_rng(seed)
    words = [*NUMBERS, *COLOURS, *OUTLINES, *(f"{colour} background" for colour in COLOURS)]
    directions, _ = torch.linalg.qr(torch.randn(CONFIG["model_cfg"]["embed_dim"], len(words)))
    phrases = {text: counted for each in combinations for text, counted in _phrases(each)}
    texts = list(phrases)
    mentioned = torch.tensor([[float(word in phrases[text]) for word in words] for text in texts])
    goals = torch.nn.functional.normalize(mentioned @ directions.T, dim=-1)
    tokens = tokenizer(texts)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    for step in range(1, _TEXT_STEPS + 1):
        _set_learning_rate(optimizer, step, _TEXT_STEPS)
        batch = rng.choice(len(texts), 192, replace=False)
        found = model.encode_text(tokens[batch], normalize=True)
        loss = 1 - (found * goals[batch]).sum(-1).mean()
        _descend(optimizer, model, loss)
    print(f"{len(texts)} phrases, off by a cosine of {loss.item():.4f}", flush=True)


def _train_images(
    model: "open_clip.CLIP",
    texts: "torch.Tensor",
    pictures: np.ndarray,
    steps: int,
    batch_size: int,
    seed: int,
    after: Callable[[int, float], None],
) -> None:
    """Trains the image tower towards the captions' embeddings, `texts` [combination, embedding]."""
    import torch

    rng = np.random.default_rng(seed)
    cross_entropy = torch.nn.functional.cross_entropy
    optimizer = torch.optim.AdamW(
        [*model.visual.parameters(), model.logit_scale], betas=(0.9, 0.98), weight_decay=0.03
    )
    losses: list[float] = []
    for step in range(1, steps + 1):
        _set_learning_rate(optimizer, step, steps)
        batch = rng.choice(len(pictures), batch_size, replace=False)
        drawn = pictures[batch, rng.integers(pictures.shape[1], size=batch_size)]
        found = model.encode_image(_augmented(drawn, rng), normalize=True)
        logits = model.logit_scale.exp() * found @ texts.T
        own = torch.from_numpy(batch)
        loss = cross_entropy(logits, own) + cross_entropy(logits[:, own].T, torch.arange(batch_size))
        _descend(optimizer, model, loss)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
        after(step, float(np.mean(losses[-50:])))


def _set_learning_rate(
    optimizer: "torch.optim.Optimizer", step: int, steps: int, peak: float = 2e-3, warm_up: int = 60
) -> None:
    """Rises in a line, then falls along half a cosine."""
    if step < warm_up:
        part = step / warm_up
    else:
        part = 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
    for group in optimizer.param_groups:
        group["lr"] = peak * part


def _descend(optimizer: "torch.optim.Optimizer", model: "torch.nn.Module", loss: "torch.Tensor") -> None:
    import torch

    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _pictures(combinations: list[Combination], each: int) -> np.ndarray:
    """Drawn pictures, uint8 [combination, each, 3, height, width]."""
    pictures = np.empty((len(combinations), each, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i, combination in enumerate(combinations):
        for k in range(each):
            pictures[i, k] = np.asarray(draw(combination, IMAGE_SIZE, (i, k))).transpose(2, 0, 1)
    return pictures


def _augmented(pictures: np.ndarray, rng: np.random.Generator) -> "torch.Tensor":
    """Mirrors half of the pictures, changes their light a little, and normalises them."""
    import torch

    mirrored = rng.random(len(pictures)) < 0.5
    pictures[mirrored] = pictures[mirrored, :, :, ::-1]
    light = rng.uniform(0.92, 1.08, (len(pictures), 1, 1, 1)).astype(np.float32)
    numbers = CONFIG["preprocess_cfg"]
    mean, std = (np.array(numbers[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return torch.from_numpy((pictures.astype(np.float32) / 255 * light - mean) / std)


def _save(model: "open_clip.CLIP", tokens: "torch.Tensor", out: Path) -> tuple[float, int]:
    """Saves the weights in half precision, and measures what a user would load."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    unused = torch.ones(len(state["token_embedding.weight"]), dtype=torch.bool)
    unused[tokens.unique()] = False
    state["token_embedding.weight"][unused] = 0
    save_file(state, out / "open_clip_model.safetensors")
    shipped, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    return held_out_accuracy(shipped.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{out}"))


def train(out: Path, steps: int, batch_size: int, each: int, seed: int, save_every: int) -> None:
    """Trains the model and saves it, with its config, now and then and at the end.

    Args:
        out: The model directory to write.
        steps: Batches of pictures to train on.
        batch_size: Pictures in a batch, each of another combination.
        each: Different pictures drawn for each combination.
        seed: Of the first weights and of the order of the pictures.
        save_every: Steps from one save, and look at the held-out combinations, to the next.
    """
    import open_clip
    import torch

    began = time.monotonic()
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    combinations = [combination for combination in all_combinations() if not combination.held_out]
    model = open_clip.CLIP(**copy.deepcopy(CONFIG["model_cfg"]))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    _train_text(model, tokenizer, combinations, seed)
    tokens = tokenizer([combination.caption for combination in combinations])
    with torch.no_grad():
        texts = model.encode_text(tokens, normalize=True)
    pictures = _pictures(combinations, each)
    count = pictures.shape[0] * pictures.shape[1]
    print(
        f"{count} pictures of {len(combinations)} combinations, {time.monotonic() - began:.0f} s", flush=True
    )

    def after(step: int, loss: float) -> None:
        if step % save_every == 0 or step == steps:
            accuracy, among = _save(model, tokens, out)
            passed = f"step {step}, {time.monotonic() - began:.0f} s, loss {loss:.3f}"
            print(f"{passed}, {accuracy:.2%} of {among} held-out pictures found", flush=True)

    _train_images(model, texts, pictures, steps, batch_size, seed, after)


def main() -> None:
    """Reads the options and trains."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TINY_DIR)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--each", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    train(**options)


if __name__ == "__main__":
    main()

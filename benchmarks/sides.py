"""The sides of the end-to-end comparison: each embeds all shards of a folder and writes what it made.

Heavy packages are imported inside the functions: what a side imports is part of its start-up, and not every
environment has every package.
"""

import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 32
TINY = "boring-tiny"
_TINY_DIR = Path(__file__).parent.parent / "boring_assets" / "tiny"
_CORES = len(os.sched_getaffinity(0))


class Model(NamedTuple):
    """What to embed with: an open_clip model name and a checkpoint file, or `boring-tiny` and nothing."""

    name: str
    checkpoint: str


class Meter:
    """When how many images were embedded: `(time, images so far)`, one mark a batch."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def add(self, images: int) -> None:
        """Marks a batch."""
        self.reach(images + (self.marks[-1][1] if self.marks else 0))

    def reach(self, images: int) -> None:
        """Marks that so many are embedded in all."""
        self.marks.append((time.time(), images))


def count_images(folder: Path) -> int:
    """Images in a folder of shards, by their stats."""
    return sum(json.loads(path.read_text())["successes"] for path in folder.glob("*_stats.json"))


def parquet_twin(folder: Path) -> Path:
    """Where the same pictures lie in img2dataset's parquet layout, for sides that cannot read tars."""
    return folder.with_name(f"{folder.name}-parquet")


def write_parquet_twin(folder: Path) -> None:
    """Writes the pictures of a folder of tars in img2dataset's parquet layout beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    twin = parquet_twin(folder)
    twin.mkdir()
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            pictures = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
        rows = pq.read_table(path.with_suffix(".parquet")).append_column("jpg", pa.array(pictures))
        pq.write_table(rows, twin / f"{path.stem}.parquet", row_group_size=100)


def load(model: Model) -> tuple[Any, Callable[[Any], Any]]:
    """The model and its preprocess, as a user of open_clip loads them."""
    import open_clip

    if model.name == TINY:
        module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{_TINY_DIR}")
    else:
        module, _, preprocess = open_clip.create_model_and_transforms(model.name, pretrained=model.checkpoint)
    return module.eval(), preprocess


def _pictures(tars: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    from PIL import Image

    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield member.name, Image.open(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]


def _embed(module: Any, images: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module.encode_image(images, normalize=True).numpy()


def _write(names: list[str], vectors: list[Any], out: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    together = np.concatenate(vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(together.reshape(-1)), together.shape[1])
    pq.write_table(pa.table({"key": names, "embedding": column}), out / "embeddings.parquet")


def plain_loop(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """One after another: read, open_clip's preprocess, a batch, the model."""
    import torch

    module, preprocess = load(model)
    names: list[str] = []
    vectors: list[Any] = []
    batch: list[Any] = []

    def flush() -> None:
        vectors.append(_embed(module, torch.stack(batch)))
        meter.add(len(batch))
        batch.clear()

    for name, picture in _pictures(sorted(folder.glob("*.tar"))):
        names.append(name)
        batch.append(preprocess(picture))
        if len(batch) == BATCH:
            flush()
    if batch:
        flush()
    _write(names, vectors, out)


def data_loader(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """A torch DataLoader with open_clip's preprocess, one worker a core, each with tars of its own."""
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    module, preprocess = load(model)
    tars = sorted(folder.glob("*.tar"))

    class Pictures(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            info = get_worker_info()
            for name, picture in _pictures(tars[info.id :: info.num_workers]):
                yield name, preprocess(picture)

    names: list[str] = []
    vectors: list[Any] = []
    for keys, images in DataLoader(Pictures(), BATCH, num_workers=min(_CORES, len(tars))):
        vectors.append(_embed(module, images))
        names += keys
        meter.add(len(images))
    _write(names, vectors, out)


def clip_retrieval(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """clip-retrieval's `clip_inference` over the tars, images only."""
    from clip_retrieval.clip_inference import mapper
    from clip_retrieval.clip_inference.main import main

    call = mapper.ClipMapper.__call__

    def metered(self: Any, item: Any) -> Any:
        answer = call(self, item)
        meter.add(len(answer["image_embs"]))
        return answer

    mapper.ClipMapper.__call__ = metered
    checkpoint = model.checkpoint
    if model.name == TINY:
        checkpoint = _tell_open_clip_of_tiny(out)
    tars = sorted(folder.glob("*.tar"))
    main(
        input_dataset=f"{folder}/{{{tars[0].stem}..{tars[-1].stem}}}.tar",
        output_folder=str(out),
        input_format="webdataset",
        batch_size=BATCH,
        num_prepro_workers=min(_CORES, len(tars)),  # it fails with more workers than tars
        enable_text=False,
        clip_model=f"open_clip:{model.name}/{checkpoint}",
        output_partition_count=1,
    )


def _tell_open_clip_of_tiny(out: Path) -> str:
    """Older open_clips have no `local-dir:`, but take a config and a checkpoint."""
    import open_clip

    config = json.loads((_TINY_DIR / "open_clip_config.json").read_text())["model_cfg"]
    (out / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(out / f"{TINY}.json")
    return str(_TINY_DIR / "open_clip_model.safetensors")


def daft_udf(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """Daft: a class UDF with open_clip's preprocess and model.

    It is given the same pictures in img2dataset's parquet layout: on two cores its `read_webdataset` (0.7.26)
    waits for ever on four tars.
    """
    import daft
    import numpy as np
    import torch
    from PIL import Image

    log = out / "marks"  # Daft runs a pickled copy of the class, which cannot reach `meter`

    @daft.cls(max_concurrency=1, use_process=False)
    class Embed:
        def __init__(self) -> None:
            self.module, self.preprocess = load(model)

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.float32()), batch_size=BATCH)
        def images(self, encoded: Any) -> Any:
            pixels = []
            for image in encoded:
                pixels.append(self.preprocess(Image.open(io.BytesIO(image))))
            vectors = _embed(self.module, torch.stack(pixels))
            with log.open("a") as file:
                print(time.time(), len(vectors), file=file)
            return list(vectors.astype(np.float32))

    shards = daft.read_parquet(str(parquet_twin(folder) / "*.parquet"))
    picked = shards.select(daft.col("key"), Embed().images(daft.col("jpg")).alias("embedding"))
    picked.write_parquet(str(out))
    total = 0
    for line in log.read_text().splitlines():
        when, images = line.split()
        total += int(images)
        meter.marks.append((float(when), total))


def engine(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """This project without Dagster: the engine, and the IO manager that writes and commits."""
    from benchmarks.gpu import shards_in
    from boring_assets.engine.pipeline import Progress, embed_shards
    from resources.clip import ClipResource
    from resources.embeddings_io import EmbeddingsIOManager, Written

    clip, embeddings = (
        ClipResource(model=model.name, pretrained=model.checkpoint),
        EmbeddingsIOManager(output_dir=str(out)),
    )
    progress = Progress()
    with _Watch(progress, meter):
        written = partial(embeddings.commit, facts={})
        work = (shards_in(folder), clip.encoder(), clip.options())
        for result in embed_shards(*work, progress=progress, then=written):
            assert isinstance(result, Written), result


def command(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """This project as it is used: `boring-assets embed`, with Dagster, its events and its database."""
    os.environ["DAGSTER_HOME"] = str(out / "dagster_home")
    from boring_assets.assets.image_embeddings import PROGRESS
    from boring_assets.cli import main

    given = ["--pretrained", model.checkpoint] if model.checkpoint else []
    with _Watch(PROGRESS, meter):
        try:
            main(
                ["embed", str(folder), str(out / "out"), "--model", model.name, *given], standalone_mode=False
            )
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"boring-assets embed ended with {end.code}.") from end


class _Watch:
    """Marks the engine's batches as its progress shows them."""

    def __init__(self, progress: Any, meter: Meter) -> None:
        self._progress, self._meter, self._stop = progress, meter, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, ended = 0, False
        while not ended:
            ended = self._stop.wait(0.005)
            if self._progress.embedded > seen:
                seen = self._progress.embedded
                self._meter.reach(seen)


def forward_ceiling(model: Model) -> float:
    """Images a second of the model on preloaded tensors, nothing else running."""
    from benchmarks.gpu import forward_only
    from resources.clip import ClipResource

    return forward_only(ClipResource(model=model.name, pretrained=model.checkpoint).encoder(), 6)


def decode_ceiling(model: Model) -> float:
    """Images a second of the decoders on encoded images in memory, one worker a core."""
    from benchmarks.gpu import decode_only
    from boring_assets.engine.decode import Preprocess

    module, _ = load(model)
    return decode_only(Preprocess.of(module.visual.preprocess_cfg), _CORES, 4)


SIDES: dict[str, Callable[[Model, Path, Path, Meter], None]] = {
    "boring-assets embed": command,
    "engine": engine,
    "plain loop": plain_loop,
    "DataLoader": data_loader,
    "clip-retrieval": clip_retrieval,
    "Daft": daft_udf,
}
CEILINGS: dict[str, Callable[[Model], float]] = {
    "forward only": forward_ceiling,
    "decode only": decode_ceiling,
}

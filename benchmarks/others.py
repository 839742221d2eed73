"""Other ways to embed the shards of the end-to-end comparison, as their users would write them.

Packages are imported inside the functions: the imports are part of a side's start-up, and not every
environment has every package.
"""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import BATCH, CORES, TINY, TINY_DIR, Meter, Model, parquet_twin


def load(model: Model) -> tuple[Any, Callable[[Any], Any]]:
    """Returns a model and its preprocess, loaded by open_clip."""
    import open_clip

    if model.name == TINY:
        module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")
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
    """A loop: read, preprocess by open_clip, batch, model."""
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
    """A torch DataLoader with open_clip's preprocess, and one worker with its own tars per core."""
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    module, preprocess = load(model)
    tars = sorted(folder.glob("*.tar"))

    class Pictures(IterableDataset):
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            info = get_worker_info()
            assert info is not None
            for name, picture in _pictures(tars[info.id :: info.num_workers]):
                yield name, preprocess(picture)

    names: list[str] = []
    vectors: list[Any] = []
    for keys, images in DataLoader(Pictures(), BATCH, num_workers=min(CORES, len(tars))):
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
        checkpoint = register_tiny_model(out)
    tars = sorted(folder.glob("*.tar"))
    main(
        input_dataset=f"{folder}/{{{tars[0].stem}..{tars[-1].stem}}}.tar",
        output_folder=str(out),
        input_format="webdataset",
        batch_size=BATCH,
        num_prepro_workers=min(CORES, len(tars)),  # clip-retrieval fails with more workers than tars
        enable_text=False,
        clip_model=f"open_clip:{model.name}/{checkpoint}",
        output_partition_count=1,
    )


def register_tiny_model(out: Path) -> str:
    """Registers `boring-tiny` with versions of open_clip without `local-dir:`; returns its checkpoint."""
    import open_clip

    config = json.loads((TINY_DIR / "open_clip_config.json").read_text())["model_cfg"]
    (out / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(out / f"{TINY}.json")
    return str(TINY_DIR / "open_clip_model.safetensors")


def daft_udf(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """Daft: a class UDF with open_clip's preprocess and model.

    It reads the same images in img2dataset's parquet layout: its `read_webdataset` (0.7.26) hangs on four
    tars with two cores.
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

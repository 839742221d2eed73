"""The sides of the end-to-end comparison: each embeds all shards of a folder and writes the result."""

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import CORES, Meter, Model
from benchmarks.others import clip_retrieval, daft_udf, data_loader, load, plain_loop


def engine(model: Model, folder: Path, out: Path, meter: Meter) -> None:
    """This project without Dagster: the engine, and the IO manager that commits."""
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
    """This project with Dagster: `boring-assets embed`."""
    os.environ["DAGSTER_HOME"] = str(out / "dagster_home")
    from boring_assets.commands.embedding import embed_all
    from boring_assets.engine.results import Progress
    from boring_assets.settings import Settings

    settings = Settings(
        input_dir=str(folder),
        output_dir=str(out / "out"),
        model=model.name,
        pretrained=model.checkpoint or "",
    )
    progress = Progress()
    with _Watch(progress, meter):
        summary = embed_all(settings, progress=progress)
    if summary.failed_shards:
        raise RuntimeError(f"boring-assets embed failed: {summary.failed_shards}")


class _Watch:
    """Records batches by the engine's progress counter."""

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
    """Returns images per second of the model alone, on preloaded tensors."""
    from benchmarks.gpu import forward_only
    from resources.clip import ClipResource

    return forward_only(ClipResource(model=model.name, pretrained=model.checkpoint).encoder(), 6)


def decode_ceiling(model: Model) -> float:
    """Returns images per second of the decoders alone, with one worker per core."""
    from benchmarks.gpu import decode_only
    from boring_assets.engine.decoding.decode import Preprocess

    module, _ = load(model)
    return decode_only(Preprocess.of(module.visual.preprocess_cfg), CORES, 4)


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

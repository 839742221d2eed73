"""The CLIP model as a resource: loaded in the step, once a process."""

import os
import threading
from typing import Any

import dagster as dg

from boring_assets.engine.decoding.decoders import MOST_THREADS, start_server
from boring_assets.engine.decoding.limits import Limits, check_formats
from boring_assets.engine.model.devices import Lease, lease
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import Options
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings, config_field

_loaded: dict[tuple[Any, ...], Encoder] = {}
_lock = threading.Lock()


class ClipResource(dg.ConfigurableResource):
    """An open_clip model on its device, and how much of the machine goes to feeding it.

    Nothing is loaded before `encoder` is called: Dagster sets resources up before a step waits for its
    pool, and a model must not hold memory there.
    """

    model: str = config_field("model")
    pretrained: str = config_field("pretrained")
    device: str = config_field("device")
    precision: str = config_field("precision")
    batch_size: str = config_field("batch_size")
    decode_workers: int = config_field("decode_workers")
    read_ahead_mb: int = config_field("read_ahead_mb")
    max_image_pixels: int = config_field("max_image_pixels")
    max_image_bytes: int = config_field("max_image_bytes")
    max_image_seconds: float = config_field("max_image_seconds")
    extra_image_formats: list[str] = config_field("extra_image_formats", [])
    max_shard_rows: int = config_field("max_shard_rows")
    max_shard_mb: int = config_field("max_shard_mb")

    preview_images: int = config_field("preview_images")

    @classmethod
    def from_settings(cls, settings: Settings) -> "ClipResource":
        """The model that the settings name."""
        return cls(
            model=settings.model,
            pretrained=settings.pretrained,
            device=settings.device,
            precision=settings.precision,
            batch_size=str(settings.batch_size),
            decode_workers=settings.decode_workers,
            read_ahead_mb=settings.read_ahead_mb,
            max_image_pixels=settings.max_image_pixels,
            max_image_bytes=settings.max_image_bytes,
            max_image_seconds=settings.max_image_seconds,
            extra_image_formats=list(settings.extra_image_formats),
            max_shard_rows=settings.max_shard_rows,
            max_shard_mb=settings.max_shard_mb,
            preview_images=settings.preview_images,
        )

    def encoder(self) -> Encoder:
        """The model on its device, loaded at the first call of a process.

        Returns:
            The encoder; the same one for the same settings.

        Raises:
            ModelError: The model or the device cannot be had.
            SettingsError: The batch size or the precision is none.
        """
        size = self._batch_size()
        device = self.lease().torch_name
        wanted = (self.model, self.pretrained, device, self.precision, size)
        with _lock:
            if wanted not in _loaded:
                _loaded.clear()  # a device rarely has room for two
                _loaded[wanted] = Encoder(
                    load_model(self.model, self.pretrained), device, self.precision, size
                )
            return _loaded[wanted]

    def lease(self) -> Lease:
        """The device that this process has; taken at the first call, where there is a choice."""
        return lease(self.device)

    def _batch_size(self) -> Any:
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise SettingsError(
                f"BORING_PRECISION (precision) is {self.precision!r}; expected auto, fp32, bf16 or fp16."
            )
        if self.batch_size == "auto":
            return "auto"
        if not self.batch_size.isdecimal() or int(self.batch_size) < 1:
            raise SettingsError(
                f"BORING_BATCH_SIZE (batch_size) is {self.batch_size!r}; expected auto or a number from 1."
            )
        return int(self.batch_size)

    def options(self, max_rows: int | None = None) -> Options:
        """How much of the machine the engine's pipeline may take.

        Where decoding takes processes, their server begins to start here, beside the model's loading.

        Args:
            max_rows: Most rows over all shards; None takes all.

        Raises:
            SettingsError: An extra image format is none of Pillow's.
        """
        workers = self.decode_workers or max(1, len(os.sched_getaffinity(0)) // self.lease().of)
        if workers > MOST_THREADS:
            start_server()
        return Options(
            decode_workers=workers,
            read_ahead_bytes=self.read_ahead_mb * 2**20,
            limits=Limits(
                pixels=self.max_image_pixels,
                bytes=self.max_image_bytes,
                seconds=self.max_image_seconds,
                extra_formats=check_formats(self.extra_image_formats),
                shard_rows=self.max_shard_rows,
                shard_bytes=self.max_shard_mb * 2**20,
            ),
            max_rows=max_rows,
            previews=self.preview_images,
        )

"""The CLIP model as a resource: loaded in the step, once in each process."""

import os
import threading
from typing import Any

import dagster as dg
from pydantic import TypeAdapter, ValidationError

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pillow import check_formats
from boring_assets.engine.model.devices import Lease, lease
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import Options
from boring_assets.engine.reader_processes import THREADS, start_server
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings
from boring_assets.storage.weights import find_model_files
from resources.defaults import config_field, resource_from_settings

_loaded: dict[tuple[Any, ...], Encoder] = {}
_lock = threading.Lock()


# The model is loaded by `encoder`, not in the setup of the resource: Dagster sets resources up before a step
# waits for its pool, and a waiting run must not hold device memory.
class ClipResource(dg.ConfigurableResource):
    """The CLIP model, its device and batch size, and the limits for images and memory."""

    model: str = config_field("model")
    pretrained: str = config_field("pretrained")
    weights_sha256: str = config_field("weights_sha256")
    device: str = config_field("device")
    precision: str = config_field("precision")
    batch_size: Any = config_field("batch_size")  # Dagster's config has no type for a number or `auto`
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
        return resource_from_settings(cls, settings)

    def encoder(self) -> Encoder:
        """Returns the model on its device, loaded at the first call of a process for these settings.

        Raises:
            ModelError: The model cannot be loaded, or the device is not there.
            SettingsError: The batch size or the precision is wrong.
            StorageError: The model's files cannot be fetched.
        """
        size, precision = self._check("batch_size"), self._check("precision")
        device = self.lease().torch_name
        # Looked up in each run, so that a worker process notices files that have changed in object storage.
        files = find_model_files(self.model, self.pretrained, self.weights_sha256)
        wanted = (files, device, precision, size)
        with _lock:
            if wanted not in _loaded:
                _loaded.clear()  # a device rarely has room for two
                _loaded[wanted] = Encoder(files.load(), device, precision, size)
            return _loaded[wanted]

    def lease(self) -> Lease:
        """The device of this process; with several devices, the first call takes a free one."""
        return lease(self.device)

    def _check(self, name: str) -> Any:
        """Returns a checked value: the types of Dagster's config are less strict than the settings."""
        setting = Settings.model_fields[name]
        kind: Any = setting.rebuild_annotation()
        try:
            return TypeAdapter(kind).validate_python(getattr(self, name))
        except ValidationError as error:
            raise SettingsError(
                f"BORING_{name.upper()} ({name}) is {getattr(self, name)!r}. {setting.description}"
            ) from error

    def options(self, max_rows: int | None = None) -> Options:
        """Limits and sizes for the engine's pipeline.

        Args:
            max_rows: Most rows over all shards; None is all.

        Raises:
            SettingsError: Pillow does not know an extra image format.
        """
        workers = self.decode_workers or max(1, len(os.sched_getaffinity(0)) // self.lease().of)
        if workers > THREADS:
            start_server()  # while the model loads
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

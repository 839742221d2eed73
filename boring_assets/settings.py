"""Every setting, typed, with its default: from the environment, or from a TOML file named by `BORING_CONFIG`.

A setting `batch_size` is the variable `BORING_BATCH_SIZE`, the line `batch_size = 64` of the file, and
the option `--batch-size` of `boring-assets embed`; the option wins over the variable, the variable over
the file. Credentials are not set here: they follow AWS's own variables, profiles and roles.
"""

import difflib
import os
import re
import tomllib
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from boring_assets.errors import SettingsError
from boring_assets.head_settings import HeadSettings, check_heads
from boring_assets.secrets import CREDENTIALS
from boring_assets.wording import expected

PREFIX = "BORING_"
COLUMN_SETTINGS = ("image_column", "key_column", "caption_column", "url_column")
# What Kubernetes puts into a pod's environment for a service whose name begins with `boring`.
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP)(_\w+)?)?$")

_URL = re.compile(r"(https?)://(?:[^/?#]*@)?(\[[\da-f:]+\]|[^/?#@:\[\s]+)(?::\d+)?(?:[/?]\S*)?")
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


class Settings(BaseSettings):
    """All settings of the project; each field says its unit and what its default does."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    input_dir: str = Field(
        "", description="URI or path of the folder or bucket prefix that holds the shards."
    )
    output_dir: str = Field("", description="URI or path below which embeddings and failures are written.")

    image_column: str = Field(
        "",
        description="Column of the images; of TFRecord files the feature, of tars the members' extension "
        "(`left.png`). Empty finds it by the usual names, or by its bytes.",
    )
    key_column: str = Field("", description="Column of the keys. Empty finds it by the usual names.")
    caption_column: str = Field(
        "",
        description="Column of the captions; of tars also an extension. Empty finds it by the usual names.",
    )
    url_column: str = Field("", description="Column of the URLs. Empty finds it by the usual names.")
    keep_image_columns: bool = Field(
        False, description="Copy image columns that are not embedded to the output, as `meta_*`."
    )

    model: str = Field(
        "ViT-B-32",
        description="open_clip model name, `hf-hub:` name, path or URI of a model directory, or "
        "`boring-tiny`.",
    )
    pretrained: str = Field(
        "",
        description="Pretrained tag, or path or URI of a checkpoint; empty takes the model's own weights, if "
        "any.",
    )
    weights_sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256 of the checkpoint or model directory, computed as in docs/models.md. Another "
        "one is refused; empty accepts any.",
    )
    device: str = Field(
        "auto",
        description="`auto` (CUDA, else CPU), `cpu`, `cuda`, `cuda:N`, or several: `cuda:0,cuda:1`. "
        "With several devices, each run uses a free one.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="Arithmetic of the model; `auto` is bf16 where the device is fast at it, else fp32. "
        "`int8` is for CPUs that are slow at bf16.",
    )
    batch_size: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Images in a batch; `auto` chooses by device. Halved when memory runs out.",
    )
    output_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Type of the embeddings in the output; older parquet readers cannot read float16.",
    )

    num_workers: int = Field(
        1, ge=1, description="How many devices (or CPU processes) `boring-assets embed` uses at once."
    )
    decode_workers: int = Field(
        0,
        ge=0,
        description="Number of images decoded at once; 0 uses one decoder for each CPU core, shared by the "
        "devices. Above 4, decoders run in processes.",
    )
    read_ahead_mb: int = Field(
        512,
        ge=1,
        description="Largest memory for encoded and decoded images that wait for the model, in MiB. "
        "Blocks requested ahead from object storage take a quarter more.",
    )
    max_samples: int = Field(
        0, ge=0, description="Embed at most this many samples in one call, to try things out; 0 embeds all."
    )
    partitions_per_run: int = Field(
        1000, ge=1, description="Partitions in one run of a backfill or of the sensor, at most."
    )
    quiet_seconds: float = Field(
        60.0,
        ge=0,
        description="Seconds without a change after which a shard without `_stats.json` is complete.",
    )
    backfill_policy: Literal["multi_run", "single_run"] = Field(
        "multi_run",
        description="`multi_run` splits a backfill into runs of `partitions_per_run`; `single_run` makes one "
        "run of it, which `--partition-range` of `dg launch` and `dagster asset materialize` needs.",
    )
    sensor_seconds: int = Field(30, ge=1, description="Seconds between two ticks of the sensor, at least.")
    dataset: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_]*$",
        description="Name of the dataset, where one Dagster instance has several; asset keys and names "
        "of partitions begin with it. Letters, digits and `_`.",
    )
    variant: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_]*$",
        description="Name of these embeddings, where one dataset is embedded several times, e.g. by two "
        "models; asset keys have it after `dataset`. Letters, digits and `_`.",
    )

    split: int = Field(
        0,
        ge=0,
        description="Largest number of shards in one part; a larger input is split into parts, each with its "
        "own assets, over one output. Dagster advises at most 100000. 0 does not split.",
    )

    duplicate_threshold: float = Field(
        0.96,
        gt=0,
        le=1,
        description="Images whose embeddings have at least this cosine are near duplicates.",
    )
    caption_embeddings: bool = Field(
        False, description="Also write each caption's embedding to `clip_scores`."
    )
    heads: Annotated[dict[str, HeadSettings], NoDecode] = Field(
        {},
        description="What `image_labels` computes from the embeddings: labels, or the outputs of a small "
        "model, by name. Write it into the settings file; see docs/labels.md.",
    )

    allowed_url_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated URI prefixes of image URLs that may be fetched, besides the input.",
    )
    max_image_pixels: int = Field(
        89_478_485, ge=1, description="An image with more pixels (width x height) fails as `too_large`."
    )
    max_image_bytes: int = Field(
        64 * 2**20, ge=1, description="An image with more encoded bytes fails as `too_large`."
    )
    max_image_seconds: float = Field(
        20.0, gt=0, description="An image that keeps a core decoding for longer fails as `too_large`."
    )
    extra_image_formats: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated image formats, by Pillow's names, to read besides JPEG, PNG, WebP, GIF, "
        "BMP, TIFF and AVIF, e.g. `JPEG2000,ICO`. Their decoders are less well tested.",
    )
    exclude: str = Field(
        "",
        description="Path or URI of a list of images that must not be embedded: text with a key, URL or "
        "SHA-256 a line, or parquet with columns `key`, `url`, `sha256`. They fail as `excluded`.",
    )
    max_shard_rows: int = Field(
        2_000_000, ge=1, description="A shard with more rows fails: it would not fit into memory."
    )
    max_shard_mb: int = Field(
        2048, ge=1, description="Memory for a shard's columns, without its images, at most, in MiB."
    )
    fetch_timeout_seconds: float = Field(
        30.0, gt=0, description="Seconds for fetching one image by its URL, redirects included, at most."
    )

    preview_images: int = Field(
        12,
        ge=0,
        le=48,
        description="Number of images in a contact sheet in the UI, 2 kB of the event log each; 0 turns "
        "it off.",
    )
    max_failure_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of a shard's downloaded images that may fail before its check warns.",
    )
    max_drift: float = Field(
        0.5,
        ge=0,
        description="Largest distance of a shard's mean embedding from that of earlier shards, in units of "
        "the embeddings' spread, before its check warns.",
    )

    metrics_dir: str = Field(
        "",
        description="Folder for a file of Prometheus metrics, for node_exporter's textfile collector.",
    )
    metrics_pushgateway: SecretStr = Field(
        SecretStr(""),
        description="URL of a Prometheus Pushgateway; it may hold a user and a password, and is never shown.",
    )
    alert_webhook: SecretStr = Field(
        SecretStr(""),
        description="URL that the sensor `failure_rate_alert` posts to; https, or http on this machine. "
        "It is never shown.",
    )
    alert_minutes: PositiveInt = Field(
        60, description="Minutes of materializations whose failures `failure_rate_alert` counts."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`json` writes one JSON object a line to standard error, also for runs."
    )

    def embedding_version(self) -> str:
        """The settings that decide what is embedded and its numbers; partitions of other ones are stale."""
        columns = [f"{name}={value}" for name in COLUMN_SETTINGS if (value := getattr(self, name))]
        weights = [f"sha256={self.weights_sha256}"] if self.weights_sha256 else []
        parts = (self.model, self.pretrained, *weights, self.precision, self.output_dtype, *columns)
        return "-".join(parts)

    @field_validator("input_dir", "output_dir", "model", "pretrained", "allowed_url_prefixes", "exclude")
    @classmethod
    def _refuse_credentials(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        # Dagster stores the resources' settings with each run, and shows them.
        if any(CREDENTIALS.search(uri) for uri in ((value,) if isinstance(value, str) else value)):
            raise PydanticCustomError(
                "credentials",
                "holds credentials, which would be stored and shown. Remove them, and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE (other clouds: their own "
                "variables).",
            )
        return value

    @field_validator("metrics_pushgateway", "alert_webhook")
    @classmethod
    def _check_url(cls, value: SecretStr, field: ValidationInfo) -> SecretStr:
        url, public = _URL.fullmatch(value.get_secret_value()), field.field_name == "alert_webhook"
        if value.get_secret_value() and not (
            url and (not public or url[1] == "https" or url[2] in _LOOPBACK)
        ):
            wanted = "https:// URL, or http:// on this machine" if public else "http:// or https:// URL"
            problem = f"must be an {wanted}. Its value is not shown: it may contain a secret."
            raise PydanticCustomError("credentials", problem)
        return value

    @field_validator("allowed_url_prefixes", "extra_image_formats", mode="before")
    @classmethod
    def _split_on_commas(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("heads", mode="before")
    @classmethod
    def _check_heads(cls, value: object) -> object:
        return check_heads(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file that `BORING_CONFIG` names."""
        file = os.environ.get(f"{PREFIX}CONFIG")
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(file))) if file else sources


def load_settings(dataset_file: Path | None = None, **own: Any) -> Settings:
    """Reads and checks the settings.

    Args:
        dataset_file: A TOML file with the settings of one of several datasets. They win over the
            environment, which has what all datasets share.
        own: The same as keywords.

    Raises:
        SettingsError: A value is wrong, the file is missing or is not TOML, or it or the environment names
            an unknown setting.
    """
    file = os.environ.get(f"{PREFIX}CONFIG")
    if file and not Path(file).is_file():
        raise SettingsError(
            f"{PREFIX}CONFIG names {file}, which is not a file. Give the path of a TOML file."
        )
    _refuse_misspelt()
    try:
        if dataset_file:
            file = str(dataset_file)
            own |= tomllib.loads(dataset_file.read_text())
        return Settings(**own)
    except OSError as error:
        raise SettingsError(f"The settings file {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {file} is not TOML: {error}.") from error
    except ValidationError as error:
        problems = groupby(error.errors(), key=lambda problem: str(problem["loc"][0]))
        raise SettingsError(
            " ".join(_explain(name, list(all_of_it), file) for name, all_of_it in problems)
        ) from error


def _refuse_misspelt() -> None:
    """Refuses unknown variables: a misspelt one would have no effect."""
    known = [f"{PREFIX}{name.upper()}" for name in (*Settings.model_fields, "config")]
    for name in os.environ:
        if not name.upper().startswith(PREFIX) or name.upper() in known or _SERVICE.search(name.upper()):
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
        raise SettingsError(
            f"{name} is set in the environment, but is not a setting; the nearest is {near[0]}. Correct its "
            f"name, or unset it: variables that begin with {PREFIX} belong to this project."
        )


def _explain(name: str, problems: list[ErrorDetails], file: str | None) -> str:
    """Returns the message for one setting; a value that may have several types has a problem with each."""
    texts = dict.fromkeys(map(expected, problems))
    reasons = " or ".join(texts).replace(" or expected", " or").rstrip(".") + "."
    field = Settings.model_fields.get(name)
    if problems[0]["type"] == "credentials" or (field and field.annotation is SecretStr):
        return f"{PREFIX}{name.upper()} {reasons}"
    if field is None:  # its value may be a secret
        return f"{file}: {_help(name)}." if file else f"{_help(name)}."
    if name == "heads":  # of a table, the place says more than its value, which may hold a secret
        inside = ".".join(map(str, problems[0]["loc"][1:]))
        return f"{PREFIX}{name.upper()}{f' ({inside})' if inside else ''}: {reasons} {_help(name)}."
    return f"{PREFIX}{name.upper()} is {problems[0]['input']!r}: {reasons} {_help(name)}."


def _help(name: str) -> str:
    """Returns one line of help for a setting, or the nearest setting if the name is unknown."""
    field = Settings.model_fields.get(name)
    if field is None:
        (near,) = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.0)
        return f"There is no setting `{name}`; the nearest is `{near}`"
    return f"{field.description} (default: {field.default!r})"

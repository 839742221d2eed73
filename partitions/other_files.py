"""Explains files of an input that are not shards, and what a user can do with them."""

import posixpath
from collections.abc import Iterator, Mapping

from boring_assets.engine.inputs.layouts import IMAGE_SUFFIXES
from partitions.shards import LONE_SUFFIXES, SUFFIX, lone_stem

_ARCHIVES = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4", ".zip", ".7z", ".rar")
_MISNAMED = (
    *(".parq", ".pq", ".parquet.gz", ".parquet.zst", ".tar.zstd", ".tzst", ".tar.gzip"),
    *(".tfrec", ".tfrecord.gz", ".tfrecords.gz", ".tfrec.gz"),
)
_TABLES = {
    ".jsonl": 'polars.read_ndjson("{name}").write_parquet("{stem}.parquet")',
    ".ndjson": 'polars.read_ndjson("{name}").write_parquet("{stem}.parquet")',
    ".json": 'polars.read_json("{name}").write_parquet("{stem}.parquet")',
    ".csv": 'polars.read_csv("{name}").write_parquet("{stem}.parquet")',
    ".tsv": 'polars.read_csv("{name}", separator="\\t").write_parquet("{stem}.parquet")',
    ".arrow": 'datasets.Dataset.from_file("{name}").to_parquet("{stem}.parquet")',
    ".feather": 'polars.read_ipc("{name}").write_parquet("{stem}.parquet")',
}


def why_refused(path: str) -> str | None:
    """Why a file that may be a shard is not read, by its name; None for all other files."""
    lower = path.lower()
    if lower.endswith(_ARCHIVES):
        return "Archives of this kind are not read. Pack the files as .tar or .tar.gz."
    if lower.endswith(_MISNAMED) or (_is_shard(lower) and not _is_shard(path)):
        names = ", ".join((SUFFIX, *LONE_SUFFIXES))
        return f"A shard's name must end in {names}. Rename the file, or decompress it."
    return None


def _is_shard(path: str) -> bool:
    return path.endswith(SUFFIX) or lone_stem(path) is not None


def suffix_of(path: str) -> str:
    """The ending of a file's name in lower case, compressed ones with both endings: `.jsonl.gz`."""
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    if suffix.lower() in (".gz", ".zst", ".bz2"):
        suffix = posixpath.splitext(stem)[1] + suffix
    return suffix.lower()


def what_to_do(others: Mapping[str, str], uri: str) -> Iterator[str]:
    """Yields sentences: what an input without shards holds, and how to convert it."""
    if not others:
        yield "It is empty; names that begin with `.` or `_` are skipped."
        return
    listed = ", ".join(sorted(suffix or "names without an ending" for suffix in others)[:10])
    yield f"It holds other files: {listed} (for example {next(iter(others.values()))})."
    if any(suffix[1:] in IMAGE_SUFFIXES for suffix in others):
        yield f"For image files, run `boring-assets list-pictures {uri}` first: it writes shards of them."
    for suffix, path in others.items():
        if command := _TABLES.get(suffix.removesuffix(".gz").removesuffix(".zst")):
            name = posixpath.basename(path)
            code = command.format(name=name, stem=name.split(".")[0])
            yield f"Write {suffix} files as parquet, e.g. {code}."

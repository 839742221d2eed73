"""Model files in object storage: each machine fetches them once, into a cache folder, and checks them.

The cache is `boring_assets/models` below `XDG_CACHE_HOME`, or below `~/.cache`:

    {URI's hash}/lock                     held by the process that fetches
    {URI's hash}/{version}/manifest.json  what the files are; the folder appears whole, by a rename
    {URI's hash}/{version}/files/         the files, with their names at the source
    {URI's hash}/.part-*                  what is being fetched, or was when its process died
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boring_assets.errors import ModelError, StorageError
from boring_assets.storage.errors import storage_error, storage_errors
from boring_assets.storage.files import version_of
from boring_assets.storage.root import Root, open_root

if TYPE_CHECKING:
    from boring_assets.engine.model.load import ClipModel

log = logging.getLogger(__name__)

_TRIES = 3
# The version before the present one stays: another process may be loading it.
_KEPT = 2


@dataclass(frozen=True)
class ModelFiles:
    """What `load_model` takes for a model: names, or paths on this machine.

    Attributes:
        name: Model name or directory.
        pretrained: Tag or checkpoint.
        uri: Where the directory or the checkpoint was fetched from; empty where it was not.
    """

    name: str
    pretrained: str
    uri: str = ""

    def load(self) -> "ClipModel":
        """Loads the model.

        Raises:
            ModelError: It cannot be loaded.
        """
        from boring_assets.engine.model.load import load_model

        return load_model(self.name, self.pretrained, self.uri)


@dataclass(frozen=True)
class _Source:
    """The files of a model at one moment.

    Attributes:
        root: The file, or the folder.
        is_file: Which of the two it is.
        sizes: Bytes by path below the folder; by name for a file.
        version: Digest over the names, sizes and ETags.
    """

    root: Root
    is_file: bool
    sizes: dict[str, int]
    version: str


def find_model_files(name: str, pretrained: str = "", sha256: str = "") -> ModelFiles:
    """Returns a model's names and local paths; what is in object storage is fetched, once for each version.

    Args:
        name: The setting `model`; the URI of a directory too.
        pretrained: The setting `pretrained`; the URI of a checkpoint too.
        sha256: What the checkpoint's or directory's digest must be; empty accepts any. With it, a copy in
            the cache is used without a request.

    Raises:
        ModelError: The digest is another, or there is no file to have one.
        StorageError: The files cannot be read, or the cache cannot be written.
    """
    which = pretrained or name.removeprefix("local-dir:")
    uri = ""
    if "://" in which:
        uri = "" if which.startswith(("file://", "local://")) else open_root(which).uri
        path = _fetched(uri, sha256) if uri else Path(open_root(which).path)
    elif sha256 and not Path(which).exists():
        raise ModelError(
            f"BORING_WEIGHTS_SHA256 is set, but {which} is not a file or directory, nor the URI of one. "
            "Leave it empty for a model name or a tag, or give the checkpoint itself."
        )
    else:
        path = Path(which)
    if sha256 and not uri:
        _check(path, sha256, which)
    if path == Path(which):
        return ModelFiles(name, pretrained)
    return ModelFiles(name, str(path), uri) if pretrained else ModelFiles(str(path), "", uri)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, or of the list of a directory's files with their SHA-256.

    The list is what `sha256sum` writes for the files in the order of their paths, hidden ones left out.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    lines = [f"{sha256_of(path / name)}  {name}\n" for name in names if not _is_hidden(name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _fetched(uri: str, sha256: str) -> Path:
    """Returns the path of a copy of the present version, or of the one with the digest."""
    folder = _cache() / hashlib.sha256(uri.encode()).hexdigest()[:16]
    source = None if sha256 else _look(uri)
    if found := _find(folder, source, sha256):
        return found
    with storage_errors(str(folder), "write", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            # Another process may have fetched it while this one waited.
            return _find(folder, source, sha256) or _fetch(uri, folder, sha256)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "boring_assets" / "models"


def _look(uri: str) -> _Source:
    """Lists the files of a model.

    Raises:
        ModelError: It has none, or one whose name leads out of its folder.
        StorageError: It cannot be listed.
    """
    root = open_root(uri)
    with storage_errors(root.uri, "read"):
        info = root.fs.info(root.path)
        is_file = info["type"] == "file"
        entries = {root.path: info} if is_file else root.fs.find(root.path, detail=True)
    base = root.path.rpartition("/")[0] if is_file else root.path
    files: dict[str, dict[str, Any]] = {path.removeprefix(f"{base}/"): one for path, one in entries.items()}
    files = {name: one for name, one in files.items() if is_file or not _is_hidden(name)}
    if wrong := [name for name in files if name.startswith("/")]:  # of a key with `//`; `..` is hidden
        raise ModelError(f"{uri} has a file {wrong[0]!r}, which would be written outside of its folder.")
    if not files:
        raise ModelError(f"{uri} holds no files. Give the URI of a checkpoint or of a model directory.")
    facts = sorted((name, one["size"], version_of(one)) for name, one in files.items())
    version = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return _Source(root, is_file, {name: int(one["size"]) for name, one in files.items()}, version)


def _find(folder: Path, source: _Source | None, sha256: str) -> Path | None:
    """Returns the path of a whole copy in the cache, of a version or with a digest; None if there is none."""
    for file in folder.glob("[!.]*/manifest.json"):
        try:
            manifest = json.loads(file.read_bytes())
            files = file.with_name("files")
            wanted = manifest["version"] == source.version if source else manifest["sha256"] == sha256
            sizes = {name: (files / name).stat().st_size for name in manifest["sizes"]}
            if wanted and sizes == manifest["sizes"]:
                return files / next(iter(sizes)) if manifest["is_file"] else files
        except (OSError, ValueError, KeyError):  # removed or damaged
            continue
    return None


def _fetch(uri: str, folder: Path, sha256: str) -> Path:
    """Fetches the present version; the caller holds the lock.

    Raises:
        ModelError: It has another digest than the one that was asked for.
        StorageError: It cannot be read, or changes all the time.
    """
    for left in folder.glob(".part-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = folder / f".part-{uuid.uuid4().hex}"
    try:
        for _ in range(_TRIES):
            source = _look(uri)
            log.info("Fetching %s (%.0f MB) to %s", uri, sum(source.sizes.values()) / 1e6, folder)
            if _copy(source, part / "files") and _look(uri).version == source.version:
                break
            shutil.rmtree(part)
        else:
            raise StorageError(
                f"Cannot read {uri}: it changed or ended early each of {_TRIES} times that it was fetched. "
                "Try again when nobody writes it."
            )
        files = part / "files"
        path = files / next(iter(source.sizes)) if source.is_file else files
        digest = sha256_of(path)
        if sha256 and digest != sha256:
            raise _other_digest(uri, digest, sha256)
        manifest = {"uri": uri, "version": source.version, "sha256": digest}
        _write(part / "manifest.json", manifest | {"is_file": source.is_file, "sizes": source.sizes})
        target = folder / source.version
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    log.info("Fetched %s, sha256 %s", uri, digest)
    _remove_old(folder)
    return target / path.relative_to(part)


def _copy(source: _Source, files: Path) -> bool:
    """Copies the files to this machine; returns whether each has its size."""
    for name, size in source.sizes.items():
        remote = source.root.path if source.is_file else f"{source.root.path}/{name}"
        local = files / name
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.root.fs.get_file(remote, str(local))
        except FileNotFoundError:
            return False  # it was replaced or removed meanwhile
        except Exception as error:
            raise storage_error(error, f"{source.root.uri} ({name})", "read") from error
        with local.open("rb") as file:
            os.fsync(file.fileno())
        if local.stat().st_size != size:
            return False
    return True


def _remove_old(folder: Path) -> None:
    versions = sorted(folder.glob("[!.]*/manifest.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in versions[_KEPT:]:
        shutil.rmtree(file.parent, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process in at a time; the kernel ends the lock of one that dies."""
    with (folder / "lock").open("a") as lock:
        with suppress(OSError):  # a filesystem without locks: several fetch, and the last one's copy stays
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, content: dict[str, Any]) -> None:
    with file.open("w") as out:
        json.dump(content, out)
        out.flush()
        os.fsync(out.fileno())


def _check(path: Path, sha256: str, shown: str) -> None:
    with storage_errors(shown, "read", OSError):
        digest = sha256_of(path)
    if digest != sha256:
        raise _other_digest(shown, digest, sha256)


def _other_digest(shown: str, digest: str, wanted: str) -> ModelError:
    return ModelError(
        f"{shown} has the sha256 {digest}, but BORING_WEIGHTS_SHA256 is {wanted}. Put the right files there, "
        "or set it to their digest."
    )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))

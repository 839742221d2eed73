"""Identifies the model of a partition, and finds partitions of other models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import ModelError
from boring_assets.output.files import committed_facts
from boring_assets.output.state import read_json
from boring_assets.settings import Settings
from boring_assets.storage.root import Root
from partitions.shards import uri_of

NAMES = ("model", "pretrained", "weights_digest", "precision", "dim", "preprocess", "dtype")
"""The facts that all partitions of an output share, so that their vectors can be compared."""


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that identify how a partition was embedded.

    Args:
        facts: Metadata of an embeddings file, or the content of `metadata.json`.

    Returns:
        The value of each of `NAMES`, as read from JSON; None if it is missing.
    """
    return {name: json.loads(json.dumps(facts.get(name))) for name in NAMES}


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Returns the differences of two identities as text: `precision bf16 instead of fp32`."""
    return ", ".join(
        f"{name} {theirs[name]} instead of {mine[name]}" for name in NAMES if theirs[name] != mine[name]
    )


def choose_model(settings: Settings, embedded: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings of the model for embeddings: `model`, `pretrained` and `weights_sha256`.

    Args:
        settings: They decide where they set a model.
        embedded: The facts of the embeddings, which decide otherwise.

    Raises:
        ModelError: The facts name a URI. Data must not decide what is fetched.
    """
    if {"model", "pretrained"} & settings.model_fields_set:
        return settings.model_dump(include={"model", "pretrained", "weights_sha256"})
    name, tag = str(embedded["model"]), str(embedded["pretrained"])
    if "://" in (tag or name):
        raise ModelError(
            f"The images were embedded with {tag or name}, and a URI inside data is not fetched. Set "
            "BORING_MODEL and BORING_PRETRAINED to the model that they were embedded with."
        )
    return {"model": name, "pretrained": tag, "weights_sha256": ""}


def is_all_of(root: Root, mine: Mapping[str, Any]) -> bool:
    """Returns whether one model embedded everything, by `metadata.json`; False if there is no such file."""
    totals = read_json(root, "metadata.json")
    return bool(totals) and identity(totals) == mine


def find_other_models(
    root: Root, folder: str, keys: Sequence[str], same: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields key and facts of each partition that another model embedded.

    It reads only as many files as its caller takes. A file without readable facts is skipped.

    Args:
        root: The output.
        folder: Folder of the embeddings files below it.
        keys: The partitions to read.
        same: Whether a partition's facts are those of the one model.

    Raises:
        StorageError: The output cannot be read.
    """
    threads = 4 if isinstance(root.fs, LocalFileSystem) else 16
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(keys), 8 * threads):
            some = keys[start : start + 8 * threads]
            found = pool.map(lambda key: committed_facts(root, f"{folder}/{uri_of('', key)}"), some)
            for key, facts in zip(some, found, strict=True):
                if facts.get("weights_digest") and not same(facts):
                    yield key, facts

"""Which model made an output, and the refusal to mix what two made."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets.output.files import committed_facts
from boring_assets.storage.root import Root
from partitions.shards import uri_of

NAMES = ("model", "pretrained", "weights_digest", "precision", "dim", "preprocess", "dtype")
"""The facts that are the same over all partitions of an output whose vectors can be compared."""


def identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What made a partition, of its facts.

    Args:
        facts: What an embeddings file says of itself, or `metadata.json` of all of them.

    Returns:
        The value of each of `NAMES`, as JSON gives it back; None where it is not said.
    """
    return {name: json.loads(json.dumps(facts.get(name))) for name in NAMES}


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """In which facts two identities differ, for people: `precision bf16 instead of fp32`."""
    return ", ".join(
        f"{name} {theirs[name]} instead of {mine[name]}" for name in NAMES if theirs[name] != mine[name]
    )


def is_all_of(root: Root, mine: Mapping[str, Any]) -> bool:
    """Whether `metadata.json` says that everything in an output was made by one model.

    Args:
        root: The output.
        mine: That model's identity.

    Returns:
        False also where there is no such file yet, or none that can be read.
    """
    try:
        totals = json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(totals, dict) and identity(totals) == mine


def made_by_others(
    root: Root, folder: str, keys: Sequence[str], same: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Finds the partitions that another model made; reads no further than its caller asks.

    Args:
        root: The output.
        folder: Folder of the embeddings files below it.
        keys: The partitions to look at.
        same: Whether some facts are of the one model.

    Yields:
        Key and facts of each that is of another one. A file without readable facts is passed over.

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

"""Refuses a run that would leave vectors of two models in one output."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg

from boring_assets.datasets import UNNAMED, Dataset
from boring_assets.errors import SettingsError
from boring_assets.output.identity import differences, find_other_models, identity, is_all_of
from boring_assets.tags import BACKFILL_TAG, REDO_TAG
from partitions.own_files import EMBEDDINGS
from resources.embeddings_io import EmbeddingsIOManager


def refuse_to_mix(
    embeddings: EmbeddingsIOManager, facts: Mapping[str, Any], replaced: Collection[str]
) -> None:
    """Compares a model with the models of the committed partitions that a run does not replace.

    Weights that changed under the same name or path have another digest. Settings that are `auto` are
    compared by the value that they have on the machine.

    Args:
        embeddings: The output.
        facts: Facts of the run's model, or of a partition that it adopts.
        replaced: Keys of the partitions that this run, or its backfill, embeds again.

    Raises:
        SettingsError: Some of those that stay have another model, precision, preprocess or type.
        StorageError: The output cannot be read.
    """
    root, mine = embeddings.root(), identity(facts)
    if is_all_of(root, mine):
        return
    staying = sorted(embeddings.committed() - set(replaced))
    others = find_other_models(root, EMBEDDINGS, staying, lambda theirs: identity(theirs) == mine)
    first = list(islice(others, 5))
    if not first:
        return
    key, theirs = first[0]
    named = ", ".join(key for key, _ in first)
    raise SettingsError(
        f"{root.uri} would hold vectors of two models: {key} has {differences(identity(theirs), mine)}"
        f"{f' (and so have {named})' if len(first) > 1 else ''}. Give the settings that it was embedded "
        "with, or another output; or embed everything again: `boring-assets embed --redo`, or one backfill "
        f"of all partitions. A run with the tag {REDO_TAG}=true mixes them anyway."
    )


def backfilled(
    instance: dg.DagsterInstance, tags: Mapping[str, str], parts: Sequence[Dataset] = (UNNAMED,)
) -> set[str]:
    """Returns all partitions that a run's backfill embeds again, in any of its runs and parts."""
    backfill = instance.get_backfill(tags[BACKFILL_TAG]) if BACKFILL_TAG in tags else None
    if backfill is None or backfill.asset_backfill_data is None:
        return set()
    subset = backfill.asset_backfill_data.target_subset
    assets = subset.asset_keys & {part.embeddings for part in parts}
    return {key for asset in assets for key in subset.get_partitions_subset(asset).get_partition_keys()}

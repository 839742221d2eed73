"""What `embed --redo` finds beyond Dagster's record: weights that changed under the same name or path."""

from collections.abc import Mapping
from typing import Any

from boring_assets.engine.model.load import load_model
from boring_assets.output.files import EMBEDDINGS
from boring_assets.output.identity import identity, made_by_others
from boring_assets.settings import Settings
from boring_assets.shard_states import ShardStates, State
from resources.embeddings_io import EmbeddingsIOManager


def weights(settings: Settings) -> dict[str, Any]:
    """Digest and preprocess of the model as it is now, by loading it on the CPU.

    Raises:
        ModelError: It cannot be loaded.
    """
    model = load_model(settings.model, settings.pretrained)
    facts = {"weights_digest": model.digest, "preprocess": vars(model.preprocess)}
    return {name: identity(facts)[name] for name in facts}


def find_other_weights(stock: ShardStates, settings: Settings, embeddings: EmbeddingsIOManager) -> None:
    """Marks the finished partitions that other weights made as made by other settings.

    Args:
        stock: The state of each shard; changed.
        settings: Which model.
        embeddings: The output.

    Raises:
        ModelError: The model cannot be loaded.
        StorageError: The output cannot be read.
    """
    done = stock.keys((State.DONE,))
    if not done:
        return
    mine = weights(settings)

    def same(facts: Mapping[str, Any]) -> bool:
        theirs = identity(facts)
        return all(theirs[name] == value for name, value in mine.items())

    others = made_by_others(embeddings.root(), EMBEDDINGS, done, same)
    stock.states.update({key: State.OTHER_SETTINGS for key, _ in others})

"""For `embed --redo`: finds partitions with the same settings, but with another model than now."""

from collections.abc import Mapping
from typing import Any

from boring_assets.engine.model.precision import pick_device, pick_precision
from boring_assets.output.files import EMBEDDINGS
from boring_assets.output.identity import find_other_models, identity
from boring_assets.settings import Settings
from boring_assets.shard_states import ShardStates, State
from boring_assets.storage.weights import find_model_files
from resources.embeddings_io import EmbeddingsIOManager


def present_model(settings: Settings) -> dict[str, Any]:
    """Returns digest, preprocess and precision of the model for a run here; loads it on the CPU.

    Raises:
        ModelError: It cannot be loaded, or there is no such device.
        StorageError: Its files cannot be fetched.
    """
    model = find_model_files(settings.model, settings.pretrained, settings.weights_sha256).load()
    device = pick_device(settings.device.partition(",")[0])
    precision = pick_precision(settings.precision, device)
    facts = {"weights_digest": model.digest, "preprocess": vars(model.preprocess), "precision": precision}
    return {name: identity(facts)[name] for name in facts}


def find_other_weights(states: ShardStates, settings: Settings, embeddings: EmbeddingsIOManager) -> None:
    """Marks the finished partitions that another model embedded as embedded with other settings.

    Raises:
        ModelError: The model cannot be loaded.
        StorageError: The output cannot be read.
    """
    done = states.keys((State.DONE,))
    if not done:
        return
    mine = present_model(settings)

    def same(facts: Mapping[str, Any]) -> bool:
        theirs = identity(facts)
        return all(theirs[name] == value for name, value in mine.items())

    others = find_other_models(embeddings.root(), EMBEDDINGS, done, same)
    states.states.update({key: State.OTHER_SETTINGS for key, _ in others})

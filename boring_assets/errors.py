"""The errors that the project raises.

    BoringError
    ├── SettingsError     a setting or an argument is missing or wrong
    ├── StorageError      a URI cannot be listed, read or written
    ├── ShardError        one shard cannot be read; the run continues with the others
    │   └── ChangedShardError   the shard changed while it was read; the next attempt reads the new version
    ├── ModelError        the model or its device is not available; stops a run
    └── RunError          a Dagster run that the command line started has failed

A message names the culprit, what was expected, and the fix. A bad *sample* is never an exception: it is a
recorded failure with a reason (see `boring_assets.engine.samples.Reason`).
"""


class BoringError(Exception):
    """The base class of all errors of this project."""


class SettingsError(BoringError):
    """A setting or an argument is missing or wrong."""


class StorageError(BoringError):
    """A URI cannot be listed, read or written."""


class ShardError(BoringError):
    """One shard cannot be read. The run continues with the other shards."""


class ChangedShardError(ShardError):
    """A shard changed while it was read; the next attempt reads the new version."""


class ModelError(BoringError):
    """The model or its device is not available."""


class RunError(BoringError):
    """A Dagster run that the command line started has failed."""


ERROR_NAMES = frozenset(error.__name__ for error in BoringError.__subclasses__())
"""Names of our error classes. Dagster's event log keeps the name of an error's class, not the class."""


def without_class_name(text: str) -> str:
    """Removes the name of our error class from a message as Dagster shows it (`ModelError: ...`)."""
    name, separator, rest = text.partition(": ")
    return rest if separator and name in ERROR_NAMES else text

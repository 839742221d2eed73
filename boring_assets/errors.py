"""Every error that the project raises on purpose.

    BoringError
    ├── SettingsError     a setting or an argument is missing or wrong
    ├── StorageError      a URI cannot be listed, read or written
    ├── ShardError        one shard cannot be read at all; costs that shard alone
    ├── ModelError        the model, or the device for it, cannot be had; stops a run
    └── RunError          a Dagster run that the command line started did not end well

A message names the culprit, says what was expected, and how to mend it. A bad *sample* is never an
exception: it is a recorded failure with a reason (see `boring_assets.engine.samples.Reason`).
"""


class BoringError(Exception):
    """Base of the family: catch this one to catch them all."""


class SettingsError(BoringError):
    """A setting or an argument is missing or wrong."""


class StorageError(BoringError):
    """A URI cannot be listed, read or written."""


class ShardError(BoringError):
    """One shard cannot be read at all; the other shards of a run go on."""


class ModelError(BoringError):
    """The model, or the device for it, cannot be had."""


class RunError(BoringError):
    """A Dagster run that the command line started did not end well."""


def without_family(text: str) -> str:
    """A message as Dagster shows it (`ModelError: ...`), without the name of this family's class."""
    name, separator, rest = text.partition(": ")
    family = {one.__name__ for one in BoringError.__subclasses__()}
    return rest if separator and name in family else text

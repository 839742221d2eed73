"""The price file that somebody gives to `boring-assets cost`."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boring_assets.errors import SettingsError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Strict):
    """A kind of machine that can be rented.

    Attributes:
        name: What it is called in the table.
        price_per_hour: In the file's currency.
        gpus: How many devices it has.
        images_per_second: Of the whole machine; None takes the measured rate of one device for each.
    """

    name: str = Field(min_length=1)
    price_per_hour: float = Field(ge=0)
    gpus: int = Field(default=1, ge=1)
    images_per_second: float | None = Field(default=None, gt=0)


class ObjectStorage(_Strict):
    """What object storage costs; whatever is left out is not in the result.

    Attributes:
        price_per_gb_month: A GB is 10^9 bytes.
        put_per_1000, get_per_1000, list_per_1000: Price of a thousand requests of each kind.
    """

    price_per_gb_month: float | None = Field(default=None, ge=0)
    put_per_1000: float | None = Field(default=None, ge=0)
    get_per_1000: float | None = Field(default=None, ge=0)
    list_per_1000: float | None = Field(default=None, ge=0)


class Prices(_Strict):
    """A price file.

    Attributes:
        currency: Shown with each sum.
        machine: The kinds of machine.
        storage: Of the object storage.
    """

    currency: str = ""
    machine: list[Machine] = Field(min_length=1)
    storage: ObjectStorage = ObjectStorage()


def read_prices(file: Path) -> Prices:
    """Reads a price file.

    Args:
        file: A TOML file, see docs/scale.md.

    Returns:
        The prices.

    Raises:
        SettingsError: It cannot be read, is no TOML, or an entry is wrong.
    """
    try:
        return Prices(**tomllib.loads(file.read_text()))
    except OSError as error:
        raise SettingsError(f"The price file {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The price file {file} is not TOML: {error}.") from error
    except ValidationError as error:
        said = " ".join(_explain(problem["loc"], problem["msg"]) for problem in error.errors())
        raise SettingsError(
            f"The price file {file} is wrong. {said} Expected is `[[machine]]` with name, price_per_hour "
            "and, as needed, gpus and images_per_second; and `[storage]`, as docs/scale.md has them."
        ) from error


def _explain(where: tuple[Any, ...], why: str) -> str:
    names = [f"number {part + 1}" if isinstance(part, int) else str(part) for part in where]
    return f"{', '.join(names)}: {why[:1].lower()}{why[1:].rstrip('.')}."

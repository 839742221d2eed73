"""Selects the rows of an export: by a condition, and without near duplicates."""

import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.schema import ROW
from boring_assets.search.duplicates import FILE
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root

if TYPE_CHECKING:
    import polars as pl


_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`""")
# Rows are read in batches: an average would be the average of a batch.
_OF_MANY_ROWS = re.compile(
    r"\b(avg|mean|sum|count|min|max|median|mode|std\w*|var\w*|quantile\w*|corr|covar\w*|first|last|rank|"
    r"dense_rank|row_number|lag|lead|first_value|last_value|nth_value|over) *\(",
    re.IGNORECASE,
)


class Condition:
    """A condition in SQL over the columns of an export.

    Attributes:
        names: The columns in it.
    """

    def __init__(self, where: str, schema: pa.Schema) -> None:
        """Parses SQL such as `aesthetic > 5 AND label = 'dog'`.

        See https://docs.pola.rs/api/python/stable/reference/sql.

        Raises:
            SettingsError: It is not a condition over these columns.
        """
        import polars as pl

        try:
            self._expression: pl.Expr = pl.sql_expr(where)
            self.names = sorted(set(self._expression.meta.root_names()))
            if unknown := [name for name in self.names if name not in schema.names]:
                raise ValueError(f"there is no column {unknown[0]}")
            if found := _OF_MANY_ROWS.search(_QUOTED.sub("", where)):
                raise ValueError(
                    f"{found[0].rstrip('(')} uses several rows, but a filter can use only one row"
                )
            if self._evaluate(schema.empty_table()).dtype != pl.Boolean:
                raise ValueError("it is neither true nor false")
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise SettingsError(
                f"The filter {where!r} is wrong: {error}. The columns are {', '.join(schema.names)}."
            ) from error

    def _evaluate(self, rows: pa.Table) -> "pl.Series":
        import polars as pl

        frame = pl.DataFrame(pl.from_arrow(rows.select(self.names)))
        return frame.select(self._expression.alias("chosen"))["chosen"]

    def holds(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns bool [n]: the rows for which the condition is true, and not null."""
        found = self._evaluate(pa.Table.from_batches([batch])).fill_null(False).to_numpy()
        return np.broadcast_to(found, batch.num_rows)


def read_groups(root: Root) -> dict[str, dict[tuple[int, str | None], int]]:
    """Returns the group of each near duplicate by partition, then by row and key.

    Raises:
        StorageError: There is no `near_duplicates.parquet`, or it cannot be read.
    """
    try:
        with root.fs.open(f"{root.path}/{FILE}", "rb") as file:
            table = pq.read_table(file, columns=["group", "partition", ROW, "key"])
    except FileNotFoundError as error:
        raise StorageError(
            f"There is no {FILE} below {root.uri}. Find them first: boring-assets near-duplicates."
        ) from error
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{FILE}", "read") from error
    groups: dict[str, dict[tuple[int, str | None], int]] = {}
    for each in table.to_pylist():
        groups.setdefault(each["partition"], {})[each[ROW], each["key"]] = each["group"]
    return groups

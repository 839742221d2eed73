"""An output in which faults are planted, one after another, and what `verify` calls each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.output.files import write_table
from boring_assets.output.schema import METADATA_KEY, read_facts
from boring_assets.storage.root import open_root
from tests.command_line import CommandLine

KEY = "00001"


@dataclass
class Output:
    """An output of four shards of ten samples, two of them broken, and the input that it was made from."""

    cli: CommandLine
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def path(self, key: str = KEY, kind: str = "image_embeddings") -> Path:
        return self.out / kind / f"{key}.parquet"

    def verify(self, *options: object, code: int = 0, input: bool = True) -> dict[str, Any]:
        inputs = ("--input", self.folder / "in") if input else ()
        said = self.cli("verify", self.out, *inputs, "--json", *options, code=code)
        return json.loads(said.stdout)  # type: ignore[no-any-return]

    def found(self, **options: Any) -> list[tuple[str | None, str]]:
        """What is found at all, and for which partition."""
        told = {(one["partition"], one["kind"]) for one in self.verify(**options)["findings"]}
        return sorted(told, key=str)

    def rewrite(
        self, change: Callable[[pa.Table], pa.Table], kind: str = "image_embeddings", **facts: Any
    ) -> None:
        """Writes a partition's file anew as the project would, changed."""
        table = pq.read_table(self.path(kind=kind))
        new = change(table)
        if facts:
            new = new.replace_schema_metadata(
                {METADATA_KEY: json.dumps({**read_facts(table.schema.metadata), **facts}).encode()}
            )
        write_table(open_root(str(self.out)), f"{kind}/{KEY}.parquet", new)


def vectors(change: Callable[[np.ndarray], None]) -> Callable[[pa.Table], pa.Table]:
    """A change of the vectors, float32 [n, dim]."""

    def of(table: pa.Table) -> pa.Table:
        column = table["embedding"].combine_chunks()
        values = column.flatten().to_numpy().reshape(len(column), -1).copy()
        change(values)
        new = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        return table.set_column(table.column_names.index("embedding"), "embedding", new)

    return of


def a_nan(values: np.ndarray) -> None:
    values[3, 5] = np.nan


def an_infinity(values: np.ndarray) -> None:
    values[7, 0] = np.inf


def too_long(values: np.ndarray) -> None:
    values[2] *= 1.01


def all_zero(values: np.ndarray) -> None:
    values[0] = 0


def same(table: pa.Table) -> pa.Table:
    return table


def without_first(table: pa.Table) -> pa.Table:
    return table.slice(1)


def failed_row_twice(table: pa.Table) -> pa.Table:
    return table.set_column(0, "row", pa.array([table["row"][0].as_py()] * 2))


def narrower(table: pa.Table) -> pa.Table:
    column = table["embedding"].combine_chunks()
    half = column.flatten().to_numpy().reshape(len(column), -1)[:, ::2]
    half = half / np.linalg.norm(half, axis=1, keepdims=True)
    new = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])
    return table.set_column(table.column_names.index("embedding"), "embedding", new)


def a_null(table: pa.Table) -> pa.Table:
    column = table["embedding"].combine_chunks()
    new = pa.array([None, *column.to_pylist()[1:]], column.type)
    return table.set_column(table.column_names.index("embedding"), "embedding", new)


def first_row_twice(table: pa.Table) -> pa.Table:
    return table.take([0, 0, *range(2, table.num_rows)])


def rows(place: int, row: int | None) -> Callable[[pa.Table], pa.Table]:
    """A change of one embedding's input row."""

    def of(table: pa.Table) -> pa.Table:
        values = [*table["row"].to_pylist()[:place], row, *table["row"].to_pylist()[place + 1 :]]
        return table.set_column(table.column_names.index("row"), "row", pa.array(values, pa.int64()))

    return of


def swapped(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def row_of_a_failure(table: pa.Table) -> pa.Table:
    (failed, *_) = sorted(set(range(10)) - set(table["row"].to_pylist()))
    at = min(failed, table.num_rows - 1)
    return rows(at, failed)(table)


def truncate(output: Output) -> None:
    data = output.path().read_bytes()
    output.path().write_bytes(data[: len(data) // 2])


def flip(output: Output) -> None:
    data = bytearray(output.path().read_bytes())
    at = data.find(pq.read_table(output.path())["embedding"].combine_chunks().flatten().to_numpy().tobytes())
    assert at > 0
    data[at + 400] ^= 1  # the last bit of a number: neither its norm nor anything else would tell
    output.path().write_bytes(bytes(data))


def another_seed(output: Output) -> None:
    output.cli.sample_data("in", "--broken", 2, "--seed", 9, "--first-shard", 1, shards=1, samples=10)


FAULTS: dict[str, tuple[Callable[[Output], object], str]] = {
    "truncated": (truncate, "unreadable"),
    "empty": (lambda output: output.path().write_bytes(b""), "unreadable"),
    "a flipped bit": (flip, "unreadable"),
    "a flipped bit in the failures": (
        lambda output: output.path(kind="image_failures").write_bytes(
            output.path(kind="image_failures").read_bytes()[:60]
        ),
        "unreadable",
    ),
    "a NaN": (lambda output: output.rewrite(vectors(a_nan)), "not_finite"),
    "an infinity": (lambda output: output.rewrite(vectors(an_infinity)), "not_finite"),
    "a null": (lambda output: output.rewrite(a_null), "not_finite"),
    "too long a vector": (lambda output: output.rewrite(vectors(too_long)), "not_unit"),
    "a vector of zeros": (lambda output: output.rewrite(vectors(all_zero)), "not_unit"),
    "a row twice": (lambda output: output.rewrite(first_row_twice), "repeated_rows"),
    "a row lost": (lambda output: output.rewrite(without_first), "counts"),
    "a wrong count": (lambda output: output.rewrite(same, rows=11), "counts"),
    "a failure lost": (lambda output: output.rewrite(without_first, "image_failures"), "counts"),
    "a failure twice": (
        lambda output: output.rewrite(
            failed_row_twice, "image_failures"
        ),
        "failures",
    ),
    "a failure out of range": (
        lambda output: output.rewrite(
            lambda table: table.set_column(0, "row", pa.array([0, 10])), "image_failures"
        ),
        "failures",
    ),
    "an embedding of another row": (lambda output: output.rewrite(rows(0, 1)), "rows"),
    "embeddings in another order": (lambda output: output.rewrite(swapped), "rows"),
    "an embedding of a failed row": (lambda output: output.rewrite(row_of_a_failure), "rows"),
    "an embedding of no row": (lambda output: output.rewrite(rows(7, 99)), "rows"),
    "an embedding of an unknown row": (lambda output: output.rewrite(rows(7, None)), "rows"),
    "no failures file": (lambda output: output.path(kind="image_failures").unlink(), "no_failures_file"),
    "vectors of another length": (lambda output: output.rewrite(narrower), "schema"),
    "a model of another length": (lambda output: output.rewrite(narrower, dim=32), "other_model"),
    "other weights": (lambda output: output.rewrite(same, weights_digest="0" * 16), "other_model"),
    "another precision": (lambda output: output.rewrite(same, precision="bf16"), "other_model"),
    "another type": (lambda output: output.rewrite(same, dtype="float16"), "other_model"),
    "a column less": (lambda output: output.rewrite(lambda table: table.drop(["caption"])), "schema"),
    "failures of another run": (
        lambda output: output.rewrite(
            lambda table: table.set_column(4, "detail", pa.array(["seen by another run"] * len(table))),
            "image_failures",
        ),
        "failures",
    ),
    "a foreign file in its place": (
        lambda output: pq.write_table(pa.table({"a": [1]}), output.path()), "facts"
    ),
    "a changed source": (another_seed, "stale"),
}  # fmt: skip

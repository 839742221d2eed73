"""Images in a column of the parquet itself: bytes, structs of bytes and path, base64 text, lists of bytes."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.image_values import image_field, is_list, is_text
from boring_assets.engine.inputs.layouts import EMPTY, Image, OpenShard
from boring_assets.engine.inputs.read_ahead import OBJECT_BLOCK, ForwardFile, in_parallel
from boring_assets.engine.inputs.rows import largest_row_group
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ShardError

# Images in memory at the same time; each may be as large as the limit.
_BATCH_ROWS = 16
_PARALLEL_FILES = 16


def _decoded(value: pa.Scalar) -> pa.Scalar:
    """A value without dictionary encoding or extension type."""
    while isinstance(value, pa.DictionaryScalar | pa.ExtensionScalar) and value.is_valid:
        value = value.value
    return value


@dataclass
class ColumnShard(OpenShard):
    """Images in a column of the parquet itself."""

    file: pq.ParquetFile
    image_column: str
    fetcher: Fetcher
    remote_size: int = 0  # of a file that is read in more than one request

    def images(self) -> Iterator[Image]:  # noqa: D102
        row, total = 0, self.rows.num_rows
        columns, files = [self.image_column], []
        if self.remote_size:
            self._read_ahead()
        for batch in self.file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
            for value in batch.column(0):
                if row == total:
                    break
                image = self._image(row, value)
                if isinstance(image, str):
                    files.append((row, image))
                else:
                    yield row, image
                row += 1
        if row < total:
            raise ShardError(
                f"{self.shard.uri} has {total} rows, but its column {self.image_column} ends after {row}. "
                "Write it again, or remove it from the input."
            )
        yield from in_parallel(files, lambda item: (item[0], self._read_file(item[1])), _PARALLEL_FILES)

    def _read_ahead(self) -> None:
        """Opens the file again for the images, which are read forward from their first byte.

        Not where several columns make an image, in row groups larger than a block: reads go to and fro there.
        """
        metadata = self.file.metadata
        paths = (metadata.schema.column(number).path for number in range(metadata.num_columns))
        columns = sum(path.partition(".")[0] == self.image_column for path in paths)
        if columns > 1 and largest_row_group(metadata) > OBJECT_BLOCK:
            return
        file = ForwardFile(self.shard.fs, self.shard.path, self.remote_size)
        self.close()
        self.file = pq.ParquetFile(file, metadata=metadata, buffer_size=OBJECT_BLOCK)

    def read(self, row: int) -> bytes | Failure:  # noqa: D102
        start = 0
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            if row < start + count:
                value = self.file.read_row_group(group, [self.image_column]).column(0)[row - start]
                image = self._image(row, value)
                return self._read_file(image) if isinstance(image, str) else image
            start += count
        return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")

    def _image(self, row: int, value: pa.Scalar) -> bytes | Failure | str:
        """Returns an image, or the path of one whose bytes are not in the column."""
        path = None
        value = _decoded(value)
        if is_list(value.type) and value.is_valid and not pa.types.is_integer(value.type.value_type):
            if len(value.values) > 1:
                detail = f"the row has {len(value.values)} images; one is expected"
                return Failure(Reason.DECODE_ERROR, f"{detail}. Write a row for each of them.")
            if not len(value.values):
                return self.absent(row, "the list of images is empty")
            value = _decoded(value.values[0])
        if isinstance(value, pa.StructScalar) and value.is_valid:
            path = value["path"].as_py() if "path" in value else None
            value = _decoded(value[image_field(value.type)])
        if not value.is_valid:
            return path or self.absent(row, "the image column is null here")
        if is_list(value.type):
            return self._from_numbers(row, value.values)
        data = value.as_buffer()
        if not data.size:
            return path or self.absent(row, EMPTY)
        return self.from_text(row, data) if is_text(value.type) else self.from_bytes(row, data)

    def _from_numbers(self, row: int, values: pa.Array) -> bytes | Failure:
        if refusal := self.limits.too_large(len(values)):
            return refusal
        if values.null_count:
            return Failure(Reason.DECODE_ERROR, "the list of bytes has nulls")
        if not len(values):
            return self.absent(row, EMPTY)
        numbers = values.to_numpy(zero_copy_only=False)
        if numbers.min() < -128 or numbers.max() > 255:
            return Failure(Reason.DECODE_ERROR, "the list has numbers that are not bytes")
        return numbers.astype(np.int64).astype(np.uint8).tobytes()  # Java's bytes go from -128 to 127

    def _read_file(self, path: str) -> bytes | Failure:
        """Reads an image file, below the input's root or else below the shard's folder."""
        answer = self.fetcher.fetch(path, self.shard)
        if isinstance(answer, Failure) and answer.reason is Reason.FETCH_ERROR and "://" not in path:
            beside = posixpath.join(posixpath.dirname(self.shard.path), path)
            answer = self.fetcher.fetch(self.shard.fs.unstrip_protocol(beside), self.shard)
        if isinstance(answer, Failure):
            missing = answer.reason is Reason.FETCH_ERROR and "FileNotFoundError" in answer.detail
            reason = Reason.MISSING_IMAGE if missing else answer.reason
            detail = f"the image column has no bytes here, only the path {path[:200]!r}: {answer.detail}"
            return Failure(reason, detail[:500])
        return answer

    def close(self) -> None:  # noqa: D102
        self.file.close(force=True)  # also the file below it

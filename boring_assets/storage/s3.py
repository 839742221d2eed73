"""S3 for many bytes and many requests: obstore moves the bytes of objects, s3fs does everything else.

s3fs runs in Python, so it takes the interpreter's lock from the engine for each piece that arrives. obstore
is compiled, and takes it only to hand over the result. URL, region and credentials are those of s3fs's own
client. A request that obstore cannot answer is made again by s3fs, so retries and errors are s3fs's.
"""

import logging
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import s3fs
import s3fs.core
from fsspec.asyn import sync

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Config, S3Credential, S3Store

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
# s3fs uploads in parts from twice its `chunksize`.
_MOST_BYTES = 100 * 2**20
# obstore asks again five minutes earlier. botocore renews temporary ones ten minutes before they expire.
_CREDENTIALS_LAST = timedelta(minutes=10)
# Chance and overload end sooner; a storage that only s3fs can talk to is then left to it.
_MOST_MISSES = 8
# Options of a client, and of its configuration, that the client's own answers show or that s3fs alone needs.
_KNOWN = {
    "region_name",
    "endpoint_url",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "connect_timeout",
    "read_timeout",
    "max_pool_connections",
    "retries",
}
# What botocore calls no region, and the one that it signs for then.
_REGIONS = {"aws-global": "us-east-1", None: "us-east-1"}


class _Process:
    """The process whose threads obstore runs in: after a fork they are missing, and a request would hang."""

    id: int | None = None


class FastS3FileSystem(s3fs.S3FileSystem):
    """An `S3FileSystem` that reads and writes the bytes of whole objects and of ranges with obstore."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what `S3FileSystem` takes."""
        super().__init__(*args, **kwargs)
        # s3fs retries broken connections five times. With this it also retries server errors. It is set here,
        # because a filesystem may come from another process.
        s3fs.core.set_custom_error_handler(_is_transient)
        self._stores: dict[str, S3Store | None] = {}
        self._misses = 0
        self._lock = threading.Lock()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of an object, or of a range of it."""
        first = start or 0

        def slow() -> bytes:
            return bytes(sync(self.loop, self._cat_file, path, start=start, end=end, **kwargs))

        if kwargs or first < 0 or (end is not None and end <= first):
            return slow()
        return self._first_fast(path, lambda store, key: _get(store, key, first, end), slow)

    def cat_start(self, path: str, count: int) -> tuple[bytes, int | None]:
        """The first bytes of an object, and its size; None if it is unknown."""

        def fast(store: "S3Store", key: str) -> tuple[bytes, int | None]:
            import obstore

            found = obstore.get(store, key, options={"range": (0, count)})
            return found.bytes().to_bytes(), found.meta["size"]

        def slow() -> tuple[bytes, int | None]:
            data = bytes(sync(self.loop, self._cat_file, path, start=0, end=count))
            return data, len(data) if len(data) < count else None

        return self._first_fast(path, fast, slow)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        """Writes an object in one request; conditional writes and uploads in parts are s3fs's."""

        def fast(store: "S3Store", key: str) -> Any:
            import obstore

            return obstore.put(store, key, value, use_multipart=False)

        def slow() -> Any:
            return sync(self.loop, self._pipe_file, path, value, mode=mode, **kwargs)

        if kwargs or mode != "overwrite" or len(value) >= _MOST_BYTES:
            return slow()
        answer = self._first_fast(path, fast, slow)
        self.invalidate_cache(path)
        return answer

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size, ETag and time of an object; s3fs looks up everything else."""

        def fast(store: "S3Store", key: str) -> dict[str, Any]:
            import obstore

            found = obstore.head(store, key)
            return {
                "ETag": found["e_tag"] or "",
                "LastModified": found["last_modified"],
                "size": found["size"],
                "name": self._strip_protocol(path),
                "type": "file",
            }

        def slow() -> dict[str, Any]:
            return dict(sync(self.loop, self._info, path, **kwargs))

        return slow() if kwargs else self._first_fast(path, fast, slow)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> s3fs.S3File:
        if mode != "rb" or kwargs:
            return super()._open(path, mode, block_size, autocommit=autocommit, **kwargs)
        return _FastFile(
            self,
            path,
            mode,
            block_size or self.default_block_size,
            fill_cache=self.default_fill_cache,
            cache_type=self.default_cache_type,
            cache_options=cache_options,
        )

    def _first_fast(
        self, path: str, fast: Callable[["S3Store", str], Answer], slow: Callable[[], Answer]
    ) -> Answer:
        """Asks obstore, and s3fs where obstore fails."""
        bucket, key, version = self.split_path(path)
        # obstore would take a leading or trailing slash away.
        if not key or version or key.startswith("/") or key.endswith("/") or self._misses >= _MOST_MISSES:
            return slow()
        try:
            store = self._store(bucket)
            if store is None:
                return slow()
            answer = fast(store, key)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and "<Code>NoSuchKey</Code>" in str(error):
                raise FileNotFoundError(path) from None
            answer = slow()
            self._count_miss(bucket, error)
            return answer
        self._misses = 0
        return answer

    def _count_miss(self, bucket: str, error: Exception) -> None:
        # An answer to this one request: there is no such object, no such range, or another version of it.
        if isinstance(error, FileNotFoundError) or any(status in str(error) for status in (" 416 ", " 412 ")):
            return
        self._misses += 1
        if self._misses == _MOST_MISSES:
            log.info("The bucket %s is read by s3fs alone: obstore gets no answer that s3fs gets.", bucket)

    def _store(self, bucket: str) -> "S3Store | None":
        """The bucket for obstore; None where this process or these options are s3fs's alone."""
        if _Process.id not in (None, os.getpid()):
            return None
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = self._make_store(bucket) if self._is_plain() else None
            _Process.id = os.getpid()
            return self._stores[bucket]

    def _is_plain(self) -> bool:
        """Whether no option changes requests or connections in a way that obstore does not know."""
        return not (
            self.req_kw
            or self.s3_additional_kwargs
            or self.version_aware
            or self.local_expiry_check
            or self.client_kwargs.keys() - _KNOWN
            or self.config_kwargs.keys() - _KNOWN
        )

    def _make_store(self, bucket: str) -> "S3Store | None":
        from obstore.store import S3Store

        client, url = sync(self.loop, self._describe, bucket)
        config, parts = client.meta.config, urlsplit(url)
        if config.proxies:
            return None
        credentials = client._request_signer._credentials
        where: S3Config = {
            "endpoint": f"{parts.scheme}://{parts.netloc}",
            "virtual_hosted_style_request": not parts.path.startswith(f"/{bucket}/"),
            "region": _REGIONS.get(client.meta.region_name, client.meta.region_name),
        }
        if self.anon:
            where["skip_signature"] = True
        options: ClientConfig = {
            "allow_http": parts.scheme == "http",
            "connect_timeout": timedelta(seconds=config.connect_timeout),
            "read_timeout": timedelta(seconds=config.read_timeout),
            "timeout": "1h",
        }
        bundle = self.session.get_config_variable("ca_bundle")
        if bundle and parts.scheme == "https":
            options["root_certificate"] = Path(bundle).read_bytes()
        return S3Store(
            bucket,
            config=where,
            client_options=options,
            retry_config={"max_retries": 0},
            credential_provider=None if self.anon else lambda: self._frozen(credentials),
        )

    async def _describe(self, bucket: str) -> tuple[Any, str]:
        """The client of a bucket, and the URL that it makes of an object."""
        await self.set_session()
        client = await self.get_s3(bucket)
        key = {"Bucket": bucket, "Key": "key"}
        return client, await client.generate_presigned_url("get_object", Params=key)

    def _frozen(self, credentials: Any) -> "S3Credential":
        """The credentials that s3fs's client signs with now, renewed if it is time."""
        now = sync(self.loop, credentials.get_frozen_credentials)
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }


class _FastFile(s3fs.S3File):
    """An object that is open for reading."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        def slow() -> bytes:
            return bytes(super(_FastFile, self)._fetch_range(start, end))

        if start >= end:
            return slow()
        tag = self.read_kw.get("IfMatch")  # an object that changes while it is read must not be mixed
        return self.fs._first_fast(self.path, lambda store, key: _get(store, key, start, end, tag), slow)


def _get(store: "S3Store", key: str, start: int, end: int | None, tag: str | None = None) -> bytes:
    import obstore

    if tag is None and end is not None:
        return obstore.get_range(store, key, start=start, end=end).to_bytes()
    options: GetOptions = {"if_match": tag} if tag else {}
    if end is not None:
        options["range"] = (start, end)
    elif start:
        options["range"] = {"offset": start}
    return obstore.get(store, key, options=options).bytes().to_bytes()


def _is_transient(error: Exception) -> bool:
    """Whether S3 answered with a status of 500 or more, or the connection was refused or reset."""
    from botocore.exceptions import ConnectionError as NotConnected

    if isinstance(error, NotConnected):
        return True
    response = getattr(error, "response", None)
    answer = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return int(answer.get("HTTPStatusCode") or 0) >= 500

"""The one door to the object store: what its keys are, and every call to it.

Keys say what is behind them: `media/` holds originals by content, `uploads/` what a client put
there and nobody has looked at, `prep/` what the media stage made and can make again, `files/` what
came over `/v1/files` and `results/` what batches gave. Lifecycle rules empty all of them.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from worker.contract.errors import JobError, MediaExpired, StoreUnavailable
from worker.contract.log import event
from worker.contract.s3_quick import QuickStore, too_large
from worker.contract.settings import MIB, Settings

TENANT = "default"  # the only one so far; keys carry it so that a second one needs no migration
PREP_VERSION = "v1"
MULTIPART_BYTES = 64 * MIB  # larger files go up in parts; below it one conditional PUT is simpler
READ_BYTES = MIB
THREADS = 16  # blocking calls at a time per process; also the connection pool's size
LIFECYCLE_DAYS = {"uploads/": 1, "media/": 7, "prep/": 2, "files/": 31, "results/": 31}
UNFINISHED_DAYS = {"results/": 31}  # parts of a batch's results lie there until the batch ends
PART_MIN_BYTES = 5 * MIB  # S3's own bound for every part but the last

_NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_CORS = {
    "AllowedMethods": ["PUT", "GET", "HEAD"],  # PUT: browsers upload straight to the store
    "AllowedOrigins": ["*"],  # the signature in the URL is what guards the upload, not the origin
    "AllowedHeaders": ["*"],
    "ExposeHeaders": ["ETag"],
    "MaxAgeSeconds": 3600,
}

log = logging.getLogger(__name__)
T = TypeVar("T")


def media_key(sha256: str, tenant: str = TENANT) -> str:
    """Return where the original bytes with this hash (64 hex digits) are kept."""
    return f"media/{tenant}/sha256/{sha256[:2]}/{sha256}"


def upload_key(upload_id: str, tenant: str = TENANT) -> str:
    """Return where a client puts the bytes of an upload."""
    return f"uploads/{tenant}/{upload_id}"


def file_key(file_id: str, tenant: str = TENANT) -> str:
    """Return where the bytes of a file are kept that came over `/v1/files`."""
    return f"files/{tenant}/{file_id}"


def results_key(file_id: str, tenant: str = TENANT) -> str:
    """Return where the results of a batch are kept."""
    return f"results/{tenant}/{file_id}"


def prepared_key(profile_id: str, sha256: str, name: str) -> str:
    """Return where `name` (a frame, the manifest) of prepared media is kept."""
    return f"prep/{PREP_VERSION}/{profile_id}/{sha256}/{name}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says of an object; `content_type` is whatever its sender claimed."""

    size: int
    content_type: str


@dataclass(frozen=True, slots=True)
class PresignedPut:
    """A URL that takes one PUT with exactly these headers and bytes, until it expires."""

    url: str
    headers: dict[str, str]


class ObjectStore:
    """The bucket, for async code of one event loop.

    Small objects go the quick way. boto3 blocks: its calls run on a small thread pool of our own.

    Errors of every method: StoreUnavailable where the endpoint does not answer or refuses us,
    MediaExpired where the object is not there. A cancelled call returns at once; its thread ends
    with the request it is in.
    """

    def __init__(self, settings: Settings, *, threads: int = THREADS) -> None:
        self.bucket = settings.s3_bucket
        self._region = settings.aws_region
        session = boto3.session.Session()
        self._client = _client(session, settings, settings.s3_endpoint_url, threads)
        self._quick = QuickStore(
            self._client, _credentials(session, settings), self.bucket, connections=threads
        )
        public = settings.s3_public_endpoint_url
        self._signer = _client(session, settings, public, 1) if public else self._client
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="s3")

    async def put_bytes(
        self, key: str, data: bytes, content_type: str, *, if_absent: bool = False
    ) -> bool:
        """Store `data`; return False where `if_absent` found the key taken."""
        status = await self._quick.put(key, data, content_type, if_absent=if_absent)
        if status in {HTTPStatus.OK, HTTPStatus.PRECONDITION_FAILED}:
            return status == HTTPStatus.OK
        return await self._conditional(
            if_absent, self._client.put_object, Key=key, Body=data, ContentType=content_type
        )

    async def put_file(
        self, key: str, path: Path, content_type: str, *, if_absent: bool = False
    ) -> bool:
        """Store a file; return False where `if_absent` found the key taken."""
        if if_absent and await self.exists(key):
            return False  # asked first, because a refused PUT has sent all its bytes already
        return await self._conditional(if_absent, self._upload, key, path, content_type)

    async def get_bytes(self, key: str, max_bytes: int) -> bytes:
        """Return a whole object. Raises MediaTooLarge above `max_bytes`, before reading."""
        status, found = await self._quick.get(key, max_bytes)
        if status == HTTPStatus.OK:
            return found
        if status == HTTPStatus.NOT_FOUND and b"NoSuchKey" in found:  # the bucket may be missing
            raise _gone()
        return await self._call(self._read, key, max_bytes)

    async def get_to_file(self, key: str, out: BinaryIO, max_bytes: int) -> int:
        """Write a whole object into an open file; return its size. Raises MediaTooLarge.

        Closing `out` ends the transfer, so a cancelled caller need not wait for it.
        """
        return await self._call(self._read_into, key, out, max_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start` on; none where the object has no more."""
        return await self._call(self._read_range, key, start, length)

    async def begin_parts(self, key: str, content_type: str) -> str:
        """Begin an object that comes in parts; return the upload's id."""
        made = await self._call(
            self._client.create_multipart_upload,
            Bucket=self.bucket,
            Key=key,
            ContentType=content_type,
        )
        return str(made["UploadId"])

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Store a part, of at least PART_MIN_BYTES unless it is the last; return its ETag.

        `number` is 1 to 10 000 and gives the order, gaps are fine.
        """
        stored = await self._call(
            self._client.upload_part,
            Bucket=self.bucket,
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
        )
        return str(stored["ETag"])

    async def join_parts(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Make one object of these (number, ETag) and no others; again is fine."""
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        try:
            await self._call(
                self._client.complete_multipart_upload,
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )
        except MediaExpired:  # no such upload: it was joined before, unless nothing is there
            if not await self.exists(key):
                raise

    async def drop_parts(self, key: str, upload_id: str) -> None:
        """Give an upload up with all its parts; one that is not there is fine."""
        with contextlib.suppress(MediaExpired):
            await self._call(
                self._client.abort_multipart_upload,
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
            )

    async def copy(self, source: str, target: str, content_type: str) -> None:
        """Copy inside the bucket, under a content type of our own."""
        await self._call(self._copy, source, target, content_type)

    async def head(self, key: str) -> ObjectInfo | None:
        """Return size and claimed type of an object, None where there is none."""
        try:
            found = await self._call(self._client.head_object, Bucket=self.bucket, Key=key)
        except MediaExpired:
            return None
        return ObjectInfo(int(found["ContentLength"]), found.get("ContentType", ""))

    async def exists(self, key: str) -> bool:
        """Return whether there is an object of that key."""
        return await self.head(key) is not None

    async def delete(self, key: str) -> None:
        """Delete an object; one that is not there is fine."""
        await self._call(self._client.delete_object, Bucket=self.bucket, Key=key)

    async def presign_put(
        self, key: str, size: int, content_type: str, sha256: str, expires_s: int
    ) -> PresignedPut:
        """Sign one upload of exactly `size` bytes with this hash (hex) that overwrites nothing.

        The URL carries the host that clients see, S3_PUBLIC_ENDPOINT_URL where it is set. The store
        itself refuses another size, type or content.
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        signed = {
            "ContentLength": size,
            "ContentType": content_type,
            "ChecksumSHA256": checksum,
            "IfNoneMatch": "*",
        }
        url = await self._call(
            self._signer.generate_presigned_url,
            "put_object",
            Params={"Bucket": self.bucket, "Key": key, **signed},
            ExpiresIn=expires_s,
        )
        headers = {
            "Content-Length": str(size),
            "Content-Type": content_type,
            "x-amz-checksum-sha256": checksum,
            "If-None-Match": "*",
        }
        return PresignedPut(url, headers)

    async def ensure_bucket(self) -> None:
        """Create the bucket if it is not there, and set its lifecycle and CORS rules.

        A store that knows no such rules is still usable: that is logged, and expiry is left to its
        operator.
        """
        await self._call(self._create_bucket)
        for rules in (self._set_lifecycle, self._set_cors):
            try:
                await self._call(rules)
            except StoreUnavailable as error:
                event(log, "s3.rules_refused", level=logging.WARNING, reason=error.message)

    async def close(self) -> None:
        """Close the connections; calls that have not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._quick.close()
        self._client.close()
        self._signer.close()

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except (BotoCoreError, ClientError) as error:
            raise _translated(error) from error

    async def _conditional(
        self, if_absent: bool, put: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> bool:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        try:
            await self._call(put, *args, Bucket=self.bucket, **kwargs, **condition)
        except _KeyTakenError:
            return False
        return True

    def _upload(self, key: str, path: Path, content_type: str, **put: Any) -> None:
        if path.stat().st_size > MULTIPART_BYTES:
            self._upload_parts(key, path, content_type)
            return
        with path.open("rb") as body:
            self._client.put_object(Key=key, Body=body, ContentType=content_type, **put)

    def _upload_parts(self, key: str, path: Path, content_type: str) -> None:
        self._client.upload_file(
            str(path),
            self.bucket,
            key,
            ExtraArgs={"ContentType": content_type},
            Config=TransferConfig(use_threads=False),  # the pool is the bound on threads
        )

    def _copy(self, source: str, target: str, content_type: str) -> None:
        self._client.copy_object(
            Bucket=self.bucket,
            Key=target,
            CopySource={"Bucket": self.bucket, "Key": source},
            ContentType=content_type,
            MetadataDirective="REPLACE",
        )

    def _open(self, key: str, max_bytes: int) -> tuple[Any, int]:
        found = self._client.get_object(Bucket=self.bucket, Key=key)
        size = int(found["ContentLength"])
        if size > max_bytes:
            found["Body"].close()
            raise too_large(size, max_bytes)
        return found["Body"], size

    def _read(self, key: str, max_bytes: int) -> bytes:
        body, _ = self._open(key, max_bytes)
        with body:
            data: bytes = body.read()
            return data

    def _read_into(self, key: str, out: BinaryIO, max_bytes: int) -> int:
        body, size = self._open(key, max_bytes)
        with body:
            out.writelines(body.iter_chunks(READ_BYTES))
        return size

    def _read_range(self, key: str, start: int, length: int) -> bytes:
        span = f"bytes={start}-{start + length - 1}"
        try:
            found = self._client.get_object(Bucket=self.bucket, Key=key, Range=span)
        except ClientError as error:
            if _code(error) in {"InvalidRange", "416"}:
                return b""
            raise
        with found["Body"] as body:
            data: bytes = body.read()
            return data

    def _create_bucket(self) -> None:
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _code(error) not in _NOT_THERE:
                raise
            self._client.create_bucket(Bucket=self.bucket, **_location(self._region))

    def _set_lifecycle(self) -> None:
        rules = [
            {
                "ID": prefix.rstrip("/"),
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "Expiration": {"Days": days},
                "AbortIncompleteMultipartUpload": {
                    "DaysAfterInitiation": UNFINISHED_DAYS.get(prefix, 1)
                },
            }
            for prefix, days in LIFECYCLE_DAYS.items()
        ]
        self._client.put_bucket_lifecycle_configuration(
            Bucket=self.bucket, LifecycleConfiguration={"Rules": rules}
        )

    def _set_cors(self) -> None:
        self._client.put_bucket_cors(Bucket=self.bucket, CORSConfiguration={"CORSRules": [_CORS]})


class _KeyTakenError(JobError):
    """The condition of a conditional PUT did not hold; never leaves this module."""


def _client(session: Any, settings: Settings, endpoint_url: str, connections: int) -> Any:
    return session.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.aws_region,
        aws_access_key_id=settings.aws_access_key_id or None,
        aws_secret_access_key=settings.aws_secret_access_key or None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",  # stores other than AWS lack the trailers
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 4},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=connections,
        ),
    )


def _credentials(session: Any, settings: Settings) -> Any:
    """Return the given keys, else what boto3 finds where it looks for them."""
    if settings.aws_access_key_id:
        return Credentials(settings.aws_access_key_id, settings.aws_secret_access_key)
    return session.get_credentials()


def _gone() -> MediaExpired:
    return MediaExpired("the stored bytes are no longer there; send the media again")


def _location(region: str) -> dict[str, Any]:
    """Return the argument that AWS wants outside of its first region and refuses inside of it."""
    if region == "us-east-1":
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _translated(error: BotoCoreError | ClientError) -> JobError:
    if isinstance(error, ClientError):
        code = _code(error)
        if code in _NOT_THERE:
            return _gone()
        if code in {"PreconditionFailed", "ConditionalRequestConflict", "412"}:
            return _KeyTakenError(code)
        return StoreUnavailable(f"the object store refused a {error.operation_name}: {code}")
    return StoreUnavailable(f"the object store does not answer: {type(error).__name__}")

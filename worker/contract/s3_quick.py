"""Small objects by the shortest way: signed by botocore's own signer, sent without its client.

boto3 takes 1.3 ms of CPU for each, this way 0.2, and a job with a picture of its own makes
three such calls. Nothing is repeated or explained here: what does not come back as hoped is asked
of boto3 once more.
"""

import asyncio
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from worker.contract.errors import MediaTooLarge
from worker.contract.s3_wire import Answer, NoAnswerError, TooLongError, Wires

NO_ANSWER = 0
"""In place of an HTTP status: nothing came, or not all of it."""

_HASHED_BYTES = 256 * 1024  # the signature covers the body: 0.2 ms to here, more is a thread's work
_DEFAULT_PORTS = {"http": 80, "https": 443}


class QuickStore:
    """Reads and writes whole objects of one bucket. `client` is boto3's own."""

    def __init__(self, client: Any, credentials: Any, bucket: str, *, connections: int) -> None:
        self._base = f"{client.meta.endpoint_url.rstrip('/')}/{bucket}/"
        where = urlsplit(self._base)
        self._path = where.path
        self._host = _host(where.hostname or "", where.port, where.scheme)
        self._signer = S3SigV4Auth(credentials, "s3", client.meta.region_name)
        self._may_wait = isinstance(credentials, RefreshableCredentials)  # for a role's next keys
        config = client.meta.config
        self._wires = Wires(
            self._base,
            ssl.create_default_context(cafile=get_cert_path(verify=True)),
            connections=connections,
            connect_s=config.connect_timeout,
            answer_s=config.read_timeout,
        )

    async def get(self, key: str, max_bytes: int) -> tuple[int, bytes]:
        """Return the HTTP status and what came with it, 200 and the object where all is well.

        Raises:
            MediaTooLarge: the object is; nothing of it was read.
        """
        try:
            answer = await self._ask("GET", key, {}, b"", max_bytes)
        except TooLongError as error:
            raise too_large(error.size, max_bytes) from error
        except (BotoCoreError, NoAnswerError):
            return NO_ANSWER, b""
        return answer.status, answer.body

    async def put(self, key: str, data: bytes, content_type: str, *, if_absent: bool) -> int:
        """Return the HTTP status: 200, or 412 where `if_absent` found the key taken."""
        headers = {"Content-Type": content_type} | ({"If-None-Match": "*"} if if_absent else {})
        try:
            answer = await self._ask("PUT", key, headers, data, 0)
        except (BotoCoreError, NoAnswerError, TooLongError):
            return NO_ANSWER
        return answer.status

    def close(self) -> None:
        """Close the connections."""
        self._wires.close()

    async def _ask(
        self, method: str, key: str, headers: dict[str, str], data: bytes, max_bytes: int
    ) -> Answer:
        place = quote(key)
        request = AWSRequest(method, self._base + place, headers, data)
        if self._may_wait or len(data) > _HASHED_BYTES:
            await asyncio.to_thread(self._signer.add_auth, request)
        else:
            self._signer.add_auth(request)
        lines = [f"{method} {self._path}{place} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        lines += [f"Content-Length: {len(data)}"] if method == "PUT" else []
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        return await self._wires.ask((head, data) if data else (head,), max_bytes)


def too_large(size: int, max_bytes: int) -> MediaTooLarge:
    """Return the error for an object of `size` bytes."""
    return MediaTooLarge(f"the stored object has {size} bytes; the limit is {max_bytes}")


def _host(name: str, port: int | None, scheme: str) -> str:
    """Return the Host header as botocore signs it: without a scheme's own port."""
    name = f"[{name}]" if ":" in name else name
    return name if port in {None, _DEFAULT_PORTS[scheme]} else f"{name}:{port}"

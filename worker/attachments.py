"""Pictures and videos of the command line: URLs as they are, files sent with the question."""

import base64
import hashlib
import mimetypes
from collections.abc import Iterable
from pathlib import Path

import httpx

_INLINE_BYTES = 8_000_000  # larger files are uploaded first, straight to the object store
_CHUNK = 1 << 20


class AttachmentError(Exception):
    """A file that cannot be sent, as one sentence."""


def read(client: httpx.Client, names: Iterable[str]) -> list[str]:
    """Return what stands for each file or URL in a job's body: a URL, a data URL or a file id."""
    return [_reference(client, name) for name in names]


def inline(path: Path) -> str:
    """Return a file as a data URL. Raises AttachmentError for one that is not small."""
    try:
        if path.stat().st_size > _INLINE_BYTES:
            raise AttachmentError(
                f"{path} is over {_INLINE_BYTES} bytes: send it to /v1/files first, and name its id"
            )
        return f"data:{_type(path)};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError as error:
        raise AttachmentError(f"cannot read {path}: {error.strerror or error}") from error


def _reference(client: httpx.Client, name: str) -> str:
    if name.lower().startswith(("http://", "https://", "data:")):
        return name
    path = Path(name)
    try:
        if path.stat().st_size <= _INLINE_BYTES:
            return inline(path)
        return _upload(client, path)
    except OSError as error:
        raise AttachmentError(f"cannot read {name}: {error.strerror or error}") from error


def _upload(client: httpx.Client, path: Path) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    answer = client.post(
        "/v1/uploads", json={"bytes": size, "content_type": _type(path), "sha256": sha256}
    )
    if answer.is_error:
        raise AttachmentError(f"{path.name}: {answer.json()['error']['message']}")
    made = answer.json()
    with path.open("rb") as file:
        put = httpx.put(
            made["url"],
            headers=made["headers"],
            content=iter(lambda: file.read(_CHUNK), b""),
            timeout=600,
        )
    if put.is_error:
        raise AttachmentError(f"{path.name}: the object store refused it ({put.status_code})")
    return str(made["id"])


def _type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"

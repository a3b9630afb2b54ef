"""From a checked body to a durable job with its ticket on the way: what every door does."""

import asyncio
import hashlib
from collections.abc import Callable

from worker.contract import forms
from worker.contract.body import JobBody
from worker.contract.callbacks import check_url
from worker.contract.card import check_options
from worker.contract.errors import UploadNotFound
from worker.contract.files import Files
from worker.contract.job import ChatRequest, JobSpec, MediaRef
from worker.contract.models import Models
from worker.contract.s3 import ObjectStore, media_key, upload_key
from worker.contract.settings import Settings
from worker.contract.store import JobStore, Submitted


class Intake:
    """Takes jobs in: first `read` the body, then `submit` what it asks. Safe for many tasks."""

    def __init__(  # noqa: PLR0917 - the stores behind it, made once per process
        self,
        settings: Settings,
        store: JobStore,
        models: Models,
        objects: ObjectStore,
        send: Callable[[str, str], None],
        files: Files,
    ) -> None:
        """`send(job_id, queue)` puts a ticket on its way; see `broker.Tickets`."""
        self._files = files
        self._settings = settings
        self._store = store
        self._models = models
        self._objects = objects
        self._send = send

    async def read(self, body: JobBody) -> ChatRequest:
        """Return the question; media that came in the body are in the object store then.

        Raises UnknownModel, UploadNotFound, OptionUnsupported, StoreUnavailable, and what
        `forms.parse` does.
        """
        model, card = await self._models.resolve(body.model)
        parsed = forms.parse(body, self._settings)
        media = await asyncio.gather(*(self._reference(source) for source in parsed.sources))
        chat = forms.to_request(body, model, parsed, media)
        check_options(chat, card)
        return chat

    async def submit(
        self, chat: ChatRequest, spec: JobSpec, *, idempotency: str = "", body: bytes = b""
    ) -> Submitted:
        """Make a job durable and send its ticket.

        `idempotency` is the caller's key, `body` what must be the same where it is used again.
        Raises QueueFull, IdempotencyConflict, WebhookUrlInvalid, StoreUnavailable.
        """
        if spec.webhook_url:
            check_url(
                spec.webhook_url,
                self._settings.webhook_guard,
                https_only=self._settings.webhook_https_only,
                param="webhook_url",
            )
        body_hash = hashlib.sha256(body).hexdigest() if idempotency else ""
        submitted = await self._store.submit(
            chat, spec, idempotency=idempotency, body_hash=body_hash
        )
        self.send(submitted)
        return submitted

    def send(self, submitted: Submitted) -> None:
        """Put a job's ticket on its way where one is due."""
        if submitted.queue is not None:
            self._send(submitted.job_id, submitted.queue)

    async def _reference(self, source: forms.Source) -> MediaRef:
        if source.url is not None:
            return MediaRef(source.type, source.param, url=source.url)
        if source.file_id is not None:
            key = await self._key_of(source.file_id, source.param)
        else:
            assert source.data is not None  # noqa: S101 - one of the three is set
            key = media_key(hashlib.sha256(source.data).hexdigest())
            await self._objects.put_bytes(
                key, source.data, "application/octet-stream", if_absent=True
            )
        return MediaRef(source.type, source.param, object_key=key)

    async def _key_of(self, file_id: str, param: str) -> str:
        """Return where the bytes of a file or of a presigned upload are."""
        file = await self._files.find(file_id)
        if file is not None:
            return file.object_key
        key = upload_key(file_id)
        if not await self._objects.exists(key):
            raise UploadNotFound(f"nothing was uploaded as {file_id}, or it expired", param=param)
        return key

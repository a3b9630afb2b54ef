"""One of the two files that a batch leaves: ended lines, collected and stored part by part.

A line is written once its part is recorded in Redis; until then its job, or its entry, is kept. So
whoever takes a batch over begins with what no part holds.
"""

import json
from typing import Any

from worker.contract import lines, view
from worker.contract.batches import Batches, Part, ResultFile
from worker.contract.files import RESULTS, Files, new_file_id
from worker.contract.reader import JobReader
from worker.contract.s3 import PART_MIN_BYTES, ObjectStore, results_key

_PAGE = 100
_TYPE = "application/jsonl"


class NotOursError(Exception):
    """Somebody else runs this batch now: nothing more may be written."""


class ResultsFile:
    """Collects one file of one batch. `lines` are collected and stand in no part yet."""

    def __init__(  # noqa: PLR0917 - who it is for, and the stores
        self,
        batch_id: str,
        endpoint: str,
        file: ResultFile,
        token: str,
        batches: Batches,
        reader: JobReader,
        objects: ObjectStore,
    ) -> None:
        self._batch_id = batch_id
        self._endpoint = endpoint
        self._file: ResultFile = file
        self._token = token
        self._batches = batches
        self._reader = reader
        self._objects = objects
        self._clear()

    def _clear(self) -> None:
        self._text = bytearray()
        self.lines = self._prompt_tokens = self._completion_tokens = 0

    async def collect(self, laid_out: int, ending: str) -> int:
        """Take in some of the lines that are laid out; return how many these were.

        Stores a part as soon as it has S3's least size. Raises NotOursError, StoreUnavailable.
        """
        if laid_out <= self.lines:
            return 0
        entries = await self._batches.laid_out(self._batch_id, self._file, self.lines, _PAGE)
        for made, usage in await self._results(entries):
            self._text += lines.written(made, ending)
            self._prompt_tokens += usage["prompt_tokens"]
            self._completion_tokens += usage["completion_tokens"]
        self.lines += len(entries)
        if len(self._text) >= PART_MIN_BYTES:
            await self._store_part()
        return len(entries)

    async def _results(self, entries: list[str]) -> list[tuple[dict[str, Any], dict[str, int]]]:
        """Return the result lines of ended lines with their token counts, in the same order."""
        nothing = {"prompt_tokens": 0, "completion_tokens": 0}
        ids = [entry for entry in entries if entry[0] != "{"]
        found = await self._reader.many(ids)
        made = []
        for entry in entries:
            if entry[0] == "{":
                made.append((json.loads(entry), nothing))
            elif entry in found:
                record, job = found[entry]
                spec = view.spec_of(record)
                made.append((lines.result(self._endpoint, spec, job), job["usage"] or nothing))
        return made

    async def finish(self, files: Files, life_s: int) -> str | None:
        """Store what is left and make the file; return its id, None where it has no line.

        Safe to repeat. Raises NotOursError, StoreUnavailable.
        """
        if self.lines:
            await self._store_part()
        parts, size = await self._batches.parts(self._batch_id, self._file)
        if not parts:
            return None
        record = await self._batches.record(self._batch_id)
        file_id = record[f"file:{self._file}"]
        key = results_key(file_id)
        await self._objects.join_parts(key, record[f"upload:{self._file}"], parts)
        name = f"{self._batch_id}_{self._file}.jsonl"
        await files.add(file_id, size, name, RESULTS, _TYPE, key, life_s=life_s)
        return file_id

    async def _store_part(self) -> None:
        file_id, upload_id, number = await self._own_part()
        etag = await self._objects.put_part(
            results_key(file_id), upload_id, number, bytes(self._text)
        )
        part = Part(
            number,
            etag,
            len(self._text),
            self.lines,
            self._prompt_tokens,
            self._completion_tokens,
        )
        if not await self._batches.record_part(self._batch_id, self._token, self._file, part):
            raise NotOursError
        self._clear()

    async def _own_part(self) -> tuple[str, str, int]:
        """Return the file's id, its upload and a fresh part number; begin the upload if need be."""
        file_id = upload_id = ""
        if f"upload:{self._file}" not in await self._batches.record(self._batch_id):
            file_id = new_file_id()
            upload_id = await self._objects.begin_parts(results_key(file_id), _TYPE)
        told = await self._batches.next_part(
            self._batch_id, self._token, self._file, file_id, upload_id
        )
        if told is None:
            raise NotOursError
        return told

"""Joins the deltas of all jobs of a process and writes them in one call per flush.

The first piece of an idle moment leaves at once; while text keeps coming, one flush every
`FLUSH_S` carries every job's. A flush that fails is repeated as it was until Redis answers:
pieces are numbered, so what did arrive is not written twice.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.contract.errors import StoreUnavailable
from worker.contract.job import Hold
from worker.contract.log import event
from worker.contract.store import JobStore, Piece
from worker.engine.base import Delta
from worker.telling import call_objects, logprob_object

FLUSH_S = 0.02
_RETRY_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pending:
    """What one hold has not yet written, and how many pieces it has."""

    hold: Hold
    pieces: int = 0
    has_news: bool = False  # generation began, not yet said
    deltas: list[Delta] = field(default_factory=list)
    calls: int = 0  # of all attempts, cut or not

    def cut(self) -> list[Piece]:
        """Take everything out as numbered pieces."""
        out: list[Piece] = []
        if self.has_news:
            out.append(Piece(self.hold.job_id, self.hold.fence, self._next_number()))
        if self.deltas:
            out.append(self._joined(self.deltas))
        self.has_news, self.deltas = False, []
        return out

    def _joined(self, deltas: list[Delta]) -> Piece:
        if len(deltas) == 1 and not deltas[0].tool_calls and not deltas[0].logprobs:
            return self._plain(deltas[0])
        calls = [call for delta in deltas for call in delta.tool_calls]
        first, self.calls = self.calls, self.calls + len(calls)
        return Piece(
            self.hold.job_id,
            self.hold.fence,
            self._next_number(),
            "".join(delta.text for delta in deltas),
            tuple(token_id for delta in deltas for token_id in delta.token_ids),
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=call_objects(self.hold.job_id, first, calls),
            logprobs=tuple(logprob_object(entry) for d in deltas for entry in d.logprobs),
        )

    def _plain(self, delta: Delta) -> Piece:
        """Return what most pieces are, without the joining."""
        return Piece(
            self.hold.job_id,
            self.hold.fence,
            self._next_number(),
            delta.text,
            delta.token_ids,
            reasoning=delta.reasoning,
        )

    def _next_number(self) -> int:
        self.pieces += 1
        return self.pieces


class DeltaStream:
    """One per process. `run` must run while there are deltas.

    `on_refused` is called with the ids of jobs whose hold is lost.
    """

    def __init__(self, store: JobStore, on_refused: Callable[[list[str]], None]) -> None:
        self._store = store
        self._on_refused = on_refused
        self._pending: dict[str, _Pending] = {}
        self._dirty: dict[str, _Pending] = {}
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def begin(self, hold: Hold) -> None:
        """Say that the engine now works on this job."""
        pending = _Pending(hold, has_news=True, calls=len(hold.emitted_tool_calls))
        self._pending[_key(hold)] = pending
        self._mark(pending)

    def add(self, hold: Hold, delta: Delta) -> None:
        """Queue a delta for the next flush."""
        pending = self._pending[_key(hold)]
        pending.deltas.append(delta)
        self._mark(pending)

    async def end(self, hold: Hold) -> list[Piece]:
        """Take out what is not yet written: it goes with the job's end, in one step.

        Waits for a flush that is on its way, so that nothing can arrive after the end.
        """
        async with self._writing:
            self._dirty.pop(_key(hold), None)
            pending = self._pending.pop(_key(hold), None)
        return pending.cut() if pending else []

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            async with self._writing:
                has_text = await self._flush()
            if has_text:  # an answer's first text does not wait for the news that it begins
                await asyncio.sleep(FLUSH_S)

    def _mark(self, pending: _Pending) -> None:
        self._dirty[_key(pending.hold)] = pending
        self._wake.set()

    async def _flush(self) -> bool:
        """Write what there is; return whether there was text."""
        dirty, self._dirty = self._dirty, {}
        pieces = [piece for pending in dirty.values() for piece in pending.cut()]
        while pieces:
            try:
                refused = await self._store.append(pieces)
            except StoreUnavailable as error:
                event(
                    _log,
                    "stream.unwritten",
                    level=logging.WARNING,
                    pieces=len(pieces),
                    reason=error.message,
                )
                await asyncio.sleep(_RETRY_S)
            else:
                if refused:
                    self._on_refused(refused)
                break
        return any(piece.text is not None for piece in pieces)


def _key(hold: Hold) -> str:
    return f"{hold.job_id}.{hold.fence}"

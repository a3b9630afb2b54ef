"""Joins the deltas of all jobs of a process and writes them in one call per flush.

The first piece of an idle moment leaves at once; while text keeps coming, one flush begins every
`FLUSH_S` and carries every job's. A flush that fails is repeated as it was until Redis answers:
pieces are numbered, so what did arrive is not written twice.
"""

import asyncio
import logging
from collections.abc import Callable

from worker.contract.errors import StoreUnavailable
from worker.contract.job import Hold
from worker.contract.log import event
from worker.contract.store import JobStore, Piece
from worker.engine.base import Delta
from worker.telling import call_objects, logprob_object

FLUSH_S = 0.02
_RETRY_S = 0.2

_log = logging.getLogger(__name__)


class Line:
    """What one hold has not yet written, and how many pieces it has."""

    __slots__ = ("_calls", "_deltas", "_has_news", "_hold", "_mark", "_pieces")

    def __init__(self, hold: Hold, mark: Callable[["Line"], None]) -> None:
        """`mark` is called when there is text to write, once until it is cut."""
        self._hold = hold
        self._mark = mark
        self._pieces = 0
        self._has_news = True  # generation began, not yet said
        self._deltas: list[Delta] = []
        self._calls = len(hold.emitted_tool_calls)  # of all attempts, cut or not

    def add(self, delta: Delta) -> None:
        """Queue a delta for the next flush."""
        if not self._deltas:
            self._mark(self)
        self._deltas.append(delta)

    def cut(self) -> list[Piece]:
        """Take everything out as numbered pieces."""
        out: list[Piece] = []
        if self._has_news:
            out.append(Piece(self._hold.job_id, self._hold.fence, self._next_number()))
        if self._deltas:
            out.append(self._joined(self._deltas))
        self._has_news, self._deltas = False, []
        return out

    def _joined(self, deltas: list[Delta]) -> Piece:
        if len(deltas) == 1 and not deltas[0].tool_calls and not deltas[0].logprobs:
            return self._plain(deltas[0])
        calls = [call for delta in deltas for call in delta.tool_calls]
        first, self._calls = self._calls, self._calls + len(calls)
        return Piece(
            self._hold.job_id,
            self._hold.fence,
            self._next_number(),
            "".join(delta.text for delta in deltas),
            tuple(token_id for delta in deltas for token_id in delta.token_ids),
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=call_objects(self._hold.job_id, first, calls),
            logprobs=tuple(logprob_object(entry) for d in deltas for entry in d.logprobs),
        )

    def _plain(self, delta: Delta) -> Piece:
        """Return what most pieces are, without the joining."""
        return Piece(
            self._hold.job_id,
            self._hold.fence,
            self._next_number(),
            delta.text,
            delta.token_ids,
            reasoning=delta.reasoning,
        )

    def _next_number(self) -> int:
        self._pieces += 1
        return self._pieces


class DeltaStream:
    """One per process. `run` must run while there are deltas.

    `on_refused` is called with the ids of jobs whose hold is lost.
    """

    def __init__(self, store: JobStore, on_refused: Callable[[list[str]], None]) -> None:
        self._store = store
        self._on_refused = on_refused
        self._dirty: dict[Line, None] = {}  # in the order in which they have something
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def begin(self, hold: Hold) -> Line:
        """Say that the engine now works on this job, and return where its deltas go.

        The news waits for others' text, or for its own: each alone would be a write.
        """
        if not self._dirty:
            asyncio.get_running_loop().call_later(FLUSH_S, self._wake.set)
        line = Line(hold, self._mark)
        self._dirty[line] = None
        return line

    async def end(self, line: Line) -> list[Piece]:
        """Take out what is not yet written: it goes with the job's end, in one step.

        Waits for a flush that is on its way, so that nothing can arrive after the end.
        """
        async with self._writing:
            self._dirty.pop(line, None)
            return line.cut()

    async def run(self) -> None:
        """Flush for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            began_at = loop.time()
            async with self._writing:
                has_text = await self._flush()
            if has_text:  # an answer's first text does not wait for the news that it begins
                await asyncio.sleep(began_at + FLUSH_S - loop.time())

    def _mark(self, line: Line) -> None:
        self._dirty[line] = None
        self._wake.set()

    async def _flush(self) -> bool:
        """Write what there is; return whether there was text."""
        dirty, self._dirty = self._dirty, {}
        pieces = [piece for line in dirty for piece in line.cut()]
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

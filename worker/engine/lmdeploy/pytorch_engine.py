"""What we mend about LMDeploy's PyTorch engine, which shares our loop, so that pictures flow."""

from typing import Any

from lmdeploy.messages import ResponseType

from worker.engine.lmdeploy.pulse import Pulse

FORGOTTEN_BLOCKS = 256
"""Of 64 tokens; a cache of 60 GB has eight thousand for a model of 2 B."""


class PacedRequests:
    """The PyTorch engine's responses, heard with our pulse and without its limiter.

    That lets one reader go on per `sleep(0.0001)`, which an event loop rounds up to a millisecond:
    with 256 answers each hears from its engine four times a second. Its readers also arm a timer
    for every look, to find out whether the engine lives; here they are told.
    """

    def __init__(self, manager: Any, pulse: Pulse) -> None:
        self._pulse = pulse
        self._awaited: dict[int, Any] = {}
        self._engine_loop = manager._loop_task  # noqa: SLF001 - it tells nobody else of its end
        self._engine_loop.add_done_callback(self._end)
        manager.response = self._respond

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine, once it has ended."""
        over = self._engine_loop
        return over.exception() if over.done() and not over.cancelled() else None

    def pace(self, sender: Any) -> None:
        """Have what a sender receives come from here."""
        sender.async_recv = self._receive

    def _respond(self, response: Any) -> None:
        if response.type is ResponseType.SUCCESS and response.data is not None:  # tokens
            self._pulse.ring(response.event.set)
        else:
            response.event.set()

    async def _receive(self, response: Any, wait_main: bool = False) -> Any:  # noqa: ARG002 - theirs
        if self._engine_loop.done():
            response.type = ResponseType.ENGINE_STOP_ERROR
        elif not response.event.is_set():
            self._awaited[id(response)] = response
            try:
                await response.event.wait()
            finally:
                del self._awaited[id(response)]
        response.event.clear()
        return response

    def _end(self, _: Any) -> None:
        for response in self._awaited.values():
            response.type = ResponseType.ENGINE_STOP_ERROR
            response.event.set()


def forget_in_bulk(engine: Any) -> None:
    """Have the PyTorch engine's prefix cache give up many blocks at once, once it is full.

    It looks at everything that it could forget, a millisecond or two, each time that an answer
    needs one block more: a full cache halves the answers per second.
    """
    trie = engine.scheduler.block_trie
    forget = trie.evict
    trie.evict = lambda blocks: forget(max(blocks, FORGOTTEN_BLOCKS))


def name_pictures(engine: Any) -> None:
    """Give the PyTorch engine's prefix cache our fingerprints.

    Without them it hashes every patch of a picture on its loop: 10 ms for 448 × 448.
    """
    if engine.input_processor is not None:
        engine.input_processor = _NamedInputs(engine.input_processor)


class _NamedInputs:
    """The model's own input processor, whose results know their pictures' fingerprints."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def preprocess_input(self, input_ids: Any, input_multimodals: Any = None, **more: Any) -> Any:
        """Do as the model's own, then name what came out by where it begins."""
        result = self._inner.preprocess_input(input_ids, input_multimodals, **more)
        names = {_start(item): item.get("fingerprint") for item in input_multimodals or ()}
        for items in (result.input_multimodals or {}).values():
            for item in items:
                name = names.get(item.start)
                if name is not None and hasattr(item, "content_hash"):
                    item.content_hash = name.hex()
        return result


def _start(item: dict[str, Any]) -> int:
    offset = item["offset"]
    return int(offset[0] if isinstance(offset, (tuple, list)) else offset)

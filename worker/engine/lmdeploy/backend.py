"""LMDeploy's engine itself: opened on the running loop, read without its chat layer.

LMDeploy's `AsyncEngine.generate` decodes every token of every answer on the engine's loop. We open
the same object, take its request handles and read token ids only, several at a time.
"""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

# LMDeploy reads both while it is imported. A tensor of ours is mapped memory, so the collection and
# trim that it does after every 128th prompt with pictures frees nothing and stops its loop.
os.environ.setdefault("TM_LOG_LEVEL", "WARNING")
os.environ.setdefault("LMDEPLOY_MULTIMODAL_SESSION_TRIM_COUNT", "0")

import torch
from lmdeploy import GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig
from lmdeploy.archs import autoget_backend, check_vl_llm, get_model_arch, get_task
from lmdeploy.messages import ResponseType
from lmdeploy.utils import get_logger, is_bf16_supported
from lmdeploy.vl.model.builder import VISION_MODELS

from worker.contract.errors import (
    ContextTooLong,
    EngineDied,
    EngineFailed,
    JobError,
    OptionUnsupported,
    OutOfMemory,
)
from worker.engine import device
from worker.engine.alphabet import Alphabet
from worker.engine.base import Counters
from worker.engine.lmdeploy.answering import Sampled
from worker.engine.lmdeploy.capacity import token_bytes, vocabulary
from worker.engine.lmdeploy.options import MAX_TOP_K
from worker.engine.lmdeploy.pulse import Pulse
from worker.engine.lmdeploy.pytorch_engine import PacedRequests, forget_in_bulk, name_pictures
from worker.engine.lmdeploy.template import knows_tools
from worker.engine.special_tokens import special_tokens

CACHE_SHARE = 0.8
"""Of the GPU memory that is free once the weights are loaded; LMDeploy's own default."""
SWITCH_S = 0.0005
"""How long TurboMind's thread waits for Python while the loop is busy, for each answer whose bell
it rings: 5 ms, Python's own, would be a second with 256 answers."""

REMEMBERED_TOKENS = 1 << 16

_OVER = {ResponseType.FINISH, ResponseType.CANCEL}


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """What to open: a checkpoint `folder`, `name` auto, turbomind or pytorch, `tp` GPUs.

    `slots` answers at once; `context_tokens` prompt + answer, None for the model's own.
    """

    folder: str
    name: str
    tp: int
    slots: int
    context_tokens: int | None
    has_prefix_cache: bool
    trust_remote_code: bool


class Backend:
    """An opened engine of LMDeploy's. Belongs to the loop on which it was opened.

    `inside` says how many answers are being read; see `Pulse`.
    """

    def __init__(self, spec: BackendSpec, inside: Callable[[], int]) -> None:
        get_logger("lmdeploy").setLevel("WARNING")
        device.check_count(torch.cuda.device_count(), spec.tp)  # LMDeploy would wait, or crash
        name = spec.name
        if name == "auto":
            name = autoget_backend(spec.folder, trust_remote_code=spec.trust_remote_code)
        if name == "turbomind":
            check_sees_by_itself(spec.folder, trust_remote_code=spec.trust_remote_code)
        self.name: str = name
        self.slots = spec.slots
        free_bytes = torch.cuda.mem_get_info()[0]
        config = _config(name, spec)
        _, family = get_task(name, spec.folder, spec.trust_remote_code, config)
        self.asynchronous: Any = family(
            spec.folder,
            backend=name,
            backend_config=config,
            trust_remote_code=spec.trust_remote_code,
        )
        self.asynchronous.start_loop(asyncio.get_running_loop(), use_async_api=True)
        self._engine = self.asynchronous.engine
        self._handles = self.asynchronous.session_mgr.request_handle_pool
        self._sessions = count(1)
        self._alphabet = Alphabet.of(self.asynchronous.tokenizer.model.model, self.eos_ids)
        self.capacity_tokens = self._capacity(free_bytes, spec)
        self.decode = _decoder(self.asynchronous.tokenizer.model.model)
        self._pulse = Pulse(inside)
        self._paced: PacedRequests | None = None
        if name == "turbomind":
            sys.setswitchinterval(SWITCH_S)
        else:
            self._paced = PacedRequests(self._engine.req_manager, self._pulse)
            name_pictures(self._engine)
            forget_in_bulk(self._engine)
        gc.collect()
        gc.freeze()  # what is loaded stays; no later collection need look at it

    @property
    def vision(self) -> Any:
        """LMDeploy's vision model, None for a model that takes no pictures."""
        encoder = getattr(self.asynchronous, "vl_encoder", None)
        return encoder.model if encoder is not None else None

    @property
    def feature_dtype(self) -> str | None:
        """The type in which pictures go in, such as bfloat16; None where none do."""
        encoder = getattr(self.asynchronous, "vl_encoder", None)
        if encoder is None:
            return None
        return str(encoder.mm_feature_dtype or torch.float16).removeprefix("torch.")

    @property
    def context_tokens(self) -> int:
        """Prompt + answer at most."""
        own = getattr(self._engine, "max_session_len", None)
        longest = int(self.asynchronous.session_len)
        return min(longest, int(own)) if own else longest

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end an answer: the template's, the tokenizer's, the checkpoint's."""
        config = GenerationConfig(stop_token_ids=list(self.asynchronous.stop_words or ()))
        config.update_from_hf_gen_cfg(
            self.asynchronous.hf_gen_cfg, self.asynchronous.tokenizer.eos_token_id
        )
        return frozenset(config.stop_token_ids or ())

    @property
    def vocabulary(self) -> int:
        """How many tokens the model can say."""
        known = len(self.asynchronous.tokenizer.model.model)
        return min(known, vocabulary(self.asynchronous.hf_cfg) or known)

    @property
    def max_top_k(self) -> int | None:
        """The largest top_k that it takes."""
        return MAX_TOP_K if self.name == "turbomind" else None

    @property
    def reasons(self) -> bool:
        """True where the model may think before it answers, as its chat template knows."""
        template = getattr(self.asynchronous.tokenizer.model.model, "chat_template", None)
        return "<think>" in str(template)

    @property
    def knows_tools(self) -> bool:
        """True where tools can be offered and the model's calls can be read."""
        specials = special_tokens(self.asynchronous.tokenizer.model.model)
        return knows_tools(self.asynchronous.chat_template, specials)

    @property
    def has_logprobs(self) -> bool:
        """True where it can tell how likely tokens were by the model's own scores."""
        return self.name == "pytorch" and self._alphabet is not None

    def spell(self, token_id: int) -> bytes:
        """Return a token's bytes; none where the tokenizer cannot be read."""
        return self._alphabet.spell(token_id) if self._alphabet is not None else b""

    def _ring(self, semaphore: Any) -> None:
        self._pulse.ring(semaphore.release)

    async def seat(self) -> Any:
        """Wait for one of `slots` handles; `leave` gives it to the next."""
        handle = await self._handles.get()
        if self._paced is not None:
            self._paced.pace(handle.req_sender)
        else:
            handle.async_signal_cb = self._ring  # called on a thread of TurboMind's
        return handle

    def leave(self, handle: Any) -> None:
        """Give a handle to the next."""
        self._handles.put(handle)

    async def stream(
        self,
        handle: Any,
        token_ids: list[int],
        multimodal: list[dict[str, Any]] | None,
        generation: dict[str, Any],
    ) -> AsyncGenerator[Sampled, None]:
        """Yield what was sampled since the last time.

        Closing it takes the prompt out of the engine before it returns.

        Raises:
            ContextTooLong, OutOfMemory, OptionUnsupported, EngineFailed: this prompt alone.
            EngineDied: the engine is broken.
        """
        outputs = handle.async_stream_infer(
            next(self._sessions),
            input_ids=token_ids,
            multimodal=multimodal,
            gen_config=GenerationConfig(**generation),
            stream_output=True,
        )
        async with aclosing(outputs):
            async for output in outputs:
                if output.status not in {ResponseType.SUCCESS, *_OVER}:
                    raise _error(output.status) from self._failure
                if output.status is ResponseType.CANCEL:
                    break
                self._pulse.looked(len(output.token_ids))
                is_last = output.status is ResponseType.FINISH
                yield Sampled(output.token_ids, output.logprobs or (), is_last=is_last)
                if output.status is ResponseType.FINISH:
                    return
        # TurboMind's stream ends quietly where its task was cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        raise EngineDied("LMDeploy ended an answer that was not over")

    @property
    def _failure(self) -> BaseException | None:
        return self._paced.failure if self._paced is not None else None

    def counters(self) -> Counters:
        """Return the engine's own counters."""
        metrics = self._engine.get_schedule_metrics()
        return Counters(
            running=metrics.active_seqs,
            waiting=metrics.waiting_seqs,
            seats_taken=self._handles.num_dispatched,
            cache_share=round(float(metrics.cache_usage), 4),
        )

    def close(self) -> None:
        """Free the device."""
        self.asynchronous.close()
        gc.unfreeze()

    def _capacity(self, free_bytes: int, spec: BackendSpec) -> int | None:
        """Return how many tokens the key-value cache holds; TurboMind's is estimated.

        None where the checkpoint's configuration does not say enough: the slots bound it then.
        """
        cache = getattr(self._engine, "cache_config", None)
        if cache is not None:
            return int(cache.num_gpu_blocks * cache.block_size)
        per_token = token_bytes(self.asynchronous.hf_cfg, spec.tp)
        if per_token is None:
            return None
        files = Path(spec.folder).glob("*.safetensors")
        weight_bytes = sum(file.stat().st_size for file in files) / spec.tp
        return max(int(CACHE_SHARE * (free_bytes - weight_bytes) / per_token), 1)


def check_sees_by_itself(folder: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a model whose pictures TurboMind cannot take as patches, before it is loaded.

    For such a model LMDeploy's own Python model would have to look at each first.

    Raises:
        EngineFailed: it is one.
    """
    _, config = get_model_arch(folder, trust_remote_code=trust_remote_code)
    if not check_vl_llm("turbomind", config.to_dict()):
        return
    model = next((one for one in VISION_MODELS.module_dict.values() if one.match(config)), None)
    if not getattr(model, "_turbomind_native_vision", False):
        raise EngineFailed(
            f"TurboMind does not see pictures by itself with a model like {folder}; "
            "use --backend pytorch"
        )


def _config(name: str, spec: BackendSpec) -> Any:
    common: dict[str, Any] = {
        "tp": spec.tp,
        "session_len": spec.context_tokens,
        "max_batch_size": spec.slots,
        "cache_max_entry_count": CACHE_SHARE,
        "enable_prefix_caching": spec.has_prefix_cache,
        "dtype": "auto" if is_bf16_supported("cuda") else "float16",  # V100 and older
    }
    if name == "turbomind":
        return TurbomindEngineConfig(**common)
    # Its own ranks, without ray; its metrics are one object per token and answer.
    ranks = "mp" if spec.tp > 1 else None
    return PytorchEngineConfig(
        **common,
        distributed_executor_backend=ranks,
        enable_metrics=False,
        logprobs_mode="raw_logprobs",  # costs nothing while nobody asks for them
    )


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return what turns token ids into text without special tokens.

    A fast tokenizer is asked without the layers of transformers, which take longer than it does.
    Single tokens are remembered: a growing answer is decoded with the token before its new ones.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None) or tokenizer

    @lru_cache(REMEMBERED_TOKENS)
    def one(token_id: int) -> str:
        return str(fast.decode([token_id], skip_special_tokens=True))

    def decode(ids: Sequence[int]) -> str:
        if len(ids) == 1:
            return one(ids[0])
        return str(fast.decode(ids, skip_special_tokens=True))

    return decode


def _error(status: ResponseType) -> JobError:
    match status:
        case ResponseType.INPUT_LENGTH_ERROR:
            return ContextTooLong("the prompt is longer than what the engine takes")
        case ResponseType.OUT_OF_MEMORY:
            return OutOfMemory("the prompt does not fit into the GPU's memory")
        case ResponseType.NOT_SUPPORTED:
            return OptionUnsupported("the engine does not support an option of this job")
        case ResponseType.ENGINE_STOP_ERROR | ResponseType.HANDLER_NOT_EXIST:
            return EngineDied(f"LMDeploy's engine has stopped ({status.name})")
    return EngineFailed(f"LMDeploy failed on this prompt ({status.name})")

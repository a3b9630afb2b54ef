"""From turns to what LMDeploy's engine takes: token ids and picture tensors. Runs on a CPU."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
import torch
from lmdeploy.model import get_chat_template
from lmdeploy.tokenizer import Tokenizer
from lmdeploy.vl.constants import Modality
from lmdeploy.vl.engine import ImageEncoder
from lmdeploy.vl.model.builder import load_vl_model
from numpy.typing import NDArray
from PIL import Image

from worker.contract.errors import EngineFailed, OptionUnsupported
from worker.contract.log import event
from worker.engine.base import Clip, EngineOptions, Part, Picture, Turn
from worker.engine.channels import THINK
from worker.engine.lmdeploy.forms import Forms
from worker.engine.lmdeploy.grammar import response_format
from worker.engine.lmdeploy.layout import AFTER, BEFORE, Layout, check_whole
from worker.engine.special_tokens import SpecialTokens, special_tokens

_PICTURE_MARK = "<IMAGE_TOKEN>"  # LMDeploy takes this text for a picture
_MS = 1000.0
_TRIED_SIDE = 224  # of a picture that every processor takes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReaderSpec:
    """What a reader opens: a checkpoint `folder`; `decode` opens pictures, see `EngineSpec`.

    `feature_dtype` is the type in which the engine computes, such as bfloat16: pictures come in it.
    None where the model takes no pictures. `reasons`: the model may think before it answers.
    """

    folder: str
    feature_dtype: str | None
    trust_remote_code: bool = False
    decode: Callable[[bytes], NDArray[np.uint8]] | None = None
    reasons: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt as the engine takes it: `token_ids` with the pictures' places filled.

    `multimodal` is LMDeploy's own list, one entry per picture or frame, None for text;
    `is_thinking`: the template has opened the model's reasoning.
    """

    token_ids: list[int]
    multimodal: list[dict[str, Any]] | None = field(default=None, repr=False)
    is_thinking: bool = False


class Reader:
    """Renders, tokenizes and preprocesses with LMDeploy's own code, one prompt at a time."""

    def __init__(self, spec: ReaderSpec) -> None:
        trust = {"trust_remote_code": spec.trust_remote_code}
        self._tokenizer = Tokenizer(spec.folder, **trust)
        self._template = get_chat_template(spec.folder, **trust)
        self._decode = spec.decode
        self._reasons = spec.reasons
        self._vision: Any = None
        self._dtype: torch.dtype | None = None
        if spec.feature_dtype is not None:
            # As for the PyTorch backend, whose preprocessing is the same and asks for no GPU.
            self._vision = load_vl_model(spec.folder, "pytorch", **trust)
            self._dtype = getattr(torch, spec.feature_dtype)
            self._vision.set_mm_feature_dtype(self._dtype)
        specials = special_tokens(self._tokenizer.model.model)
        self._specials = SpecialTokens(specials | {_PICTURE_MARK})
        self._forms = Forms(self._tokenizer.model.model)
        self._layout = self._seen_layout()

    def read(self, turns: tuple[Turn, ...], options: EngineOptions) -> Read:
        """Return the prompt's token ids and tensors.

        Raises:
            EngineFailed: pictures for a model that takes none, a chat that the template refuses, or
                of which it leaves out a text, or a picture that the model's processor refuses.
        """
        tools = [{"type": "function", "function": f} for f in _functions(options)] or None
        has_media = any(not isinstance(part, str) for turn in turns for part in turn.parts)
        try:
            return self._with_media(turns, tools) if has_media else self._text_only(turns, tools)
        except (jinja2.TemplateError, AssertionError, ValueError, TypeError, KeyError) as error:
            raise EngineFailed(f"the model cannot be given this chat: {error}") from error

    def check_form(self, options: EngineOptions, *, is_thinking: bool) -> None:
        """Refuse what LMDeploy would leave out with no more than a line in its log, or die of.

        Raises:
            OptionUnsupported: a JSON schema or tools that guided decoding cannot follow.
        """
        form = response_format(options, reasons=self._reasons, is_thinking=is_thinking)
        if form is None:
            return
        try:
            self._forms.check(form)
        except ValueError as error:
            what = "JSON schema" if options.tools is None else "form of tool calls"
            raise OptionUnsupported(f"the engine cannot keep to this {what}: {error}") from error

    def _text_only(self, turns: tuple[Turn, ...], tools: Any) -> Read:
        chat = [_message(turn, "".join(map(self._text, turn.parts))) for turn in turns]
        text = self._template.messages2prompt(chat, tools=tools)
        check_whole(turns, text, self._text)
        return Read(list(self._tokenizer.encode(text)), is_thinking=_is_thinking(text))

    def _with_media(self, turns: tuple[Turn, ...], tools: Any) -> Read:
        if self._vision is None or self._decode is None:
            raise EngineFailed("this model takes no pictures")
        shown = self._layout.of(turns)
        chat = [_message(turn, self._content(turn)) for turn in shown]
        text, result = self._rendered(chat, tools)
        check_whole(turns, text, self._text)
        named = _named(result["multimodal"], list(_sources(shown)))
        items = [self._as_computed(item) for item in named]
        return Read(result["input_ids"], items, _is_thinking(text))

    def _rendered(self, chat: list[Any], tools: Any) -> tuple[str, dict[str, Any]]:
        """Return the prompt's text, and LMDeploy's token ids and tensors."""
        if ImageEncoder._is_new_preprocess_api(self._vision):  # noqa: SLF001 - how it tells them apart
            text = self._vision.get_input_prompt(chat, self._template, tools)
            return text, self._vision.preprocess(chat, text, None)
        chat = self._vision.preprocess(chat)
        result = self._vision.to_pytorch(chat, self._template, self._tokenizer, tools=tools)
        return result["prompt"], result

    def _seen_layout(self) -> Layout:
        """Try a message of two texts and a picture."""
        if self._vision is None:
            return Layout(takes_video=False)
        picture = Image.new("RGB", (_TRIED_SIDE, _TRIED_SIDE))
        content = [
            {"type": "text", "text": BEFORE},
            {"type": Modality.IMAGE.value, "data": picture},
            {"type": "text", "text": AFTER},
        ]
        try:
            text, _ = self._rendered([{"role": "user", "content": content}], None)
        except Exception as error:  # noqa: BLE001 - a job with such a message will say so again
            event(_log, "reader.untried", level=logging.WARNING, reason=str(error))
            return Layout(takes_video(self._vision))
        return Layout.seen(text, takes_video=takes_video(self._vision))

    def _content(self, turn: Turn) -> Any:
        if turn.role != "user" and all(isinstance(part, str) for part in turn.parts):
            return "".join(map(self._text, turn.parts))
        return [self._item(part) for part in turn.parts]

    def _item(self, part: Part) -> dict[str, Any]:
        match part:
            case str():
                return {"type": "text", "text": self._text(part)}
            case Picture():
                return {"type": Modality.IMAGE.value, "data": Image.fromarray(self._pixels(part))}
            case Clip(frames, times_s):
                pixels = np.stack([self._pixels(frame) for frame in frames])
                return {
                    "type": Modality.VIDEO.value,
                    "data": pixels,
                    "video_metadata": _timed(times_s),
                }

    def _text(self, part: Any) -> str:
        return self._specials.broken(part)

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        if self._decode is None:
            raise EngineFailed("this model takes no pictures")
        return self._decode(picture.data)

    def _as_computed(self, item: dict[str, Any]) -> dict[str, Any]:
        """Cast what LMDeploy would cast on its loop. Only Qwen2-VL's pixels come as float32."""
        pixels = item.get("pixel_values")
        if isinstance(pixels, torch.Tensor) and "image_grid_thw" in item and self._dtype:
            item["pixel_values"] = pixels.to(self._dtype)
        return item


def takes_video(vision: Any) -> bool:
    """Return whether a vision model of LMDeploy's takes whole videos; others get the frames."""
    tokens = getattr(vision, "mm_tokens", None)
    return getattr(tokens, "video_token_id", None) is not None


def _message(turn: Turn, content: Any) -> dict[str, Any]:
    """Return a chat message as templates take it."""
    calls = [
        {"type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
        for c in turn.tool_calls
    ]
    rare = {"tool_calls": calls, "tool_call_id": turn.tool_call_id, "name": turn.name}
    message = {"role": turn.role, "content": content}
    return message | {name: value for name, value in rare.items() if value}


def _functions(options: EngineOptions) -> tuple[dict[str, Any], ...]:
    return options.tools.functions if options.tools is not None else ()


def _is_thinking(text: str) -> bool:
    return text.rstrip().endswith(THINK)


def _timed(times_s: tuple[float, ...]) -> dict[str, Any]:
    """Return the metadata from which processors derive when each frame was: its place at 1 kHz."""
    places = [round(at_s * _MS) for at_s in times_s]
    return {
        "total_num_frames": places[-1] + 1,
        "fps": _MS,
        "duration": (places[-1] + 1) / _MS,
        "video_backend": "decord",
        "frames_indices": places,
    }


def _sources(turns: tuple[Turn, ...]) -> Iterable[Picture | Clip]:
    return (part for turn in turns for part in turn.parts if not isinstance(part, str))


def _named(items: list[Any], sources: list[Picture | Clip]) -> list[dict[str, Any]]:
    """Give each item a fingerprint by which the engine knows a picture that it has seen.

    TurboMind hashes all patches of a picture on its loop where it finds none: 10 ms for 448 × 448.
    Where a clip became several items, they are told apart by their number.
    """
    named = []
    for number, item in enumerate(items):
        source = sources[number] if len(sources) == len(items) else None
        digest = hashlib.sha256(
            b"".join(map(_bytes_of, sources)) + b"%d" % number
            if source is None
            else _bytes_of(source)
        )
        named.append({**dict(item), "fingerprint": digest.digest()})
    return named


def _bytes_of(source: Picture | Clip) -> bytes:
    if isinstance(source, Picture):
        return hashlib.sha256(source.data).digest()
    return b"clip" + b"".join(map(_bytes_of, source.frames)) + repr(source.times_s).encode()

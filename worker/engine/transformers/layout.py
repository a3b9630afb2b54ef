"""From turns to a model's tensors: the checkpoint's chat template, tokenizer and processor."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract.errors import EngineFailed
from worker.engine.base import Picture, Prompt, ToolCall, ToolUse, Turn, frames_as_pictures
from worker.engine.channels import THINK
from worker.engine.special_tokens import SpecialTokens
from worker.engine.transformers.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A prompt for a model.

    `tensors` are the arguments of `generate`, emitted tokens included; `length` the prompt's tokens
    without those; `is_thinking`: the template has opened the model's reasoning already.
    """

    tensors: dict[str, torch.Tensor]
    length: int
    is_thinking: bool


class Layout:
    """Turns prompts into the arguments of `generate`. Not thread-safe: tokenizers are not."""

    def __init__(
        self, checkpoint: Checkpoint, decode: Callable[[bytes], NDArray[np.uint8]] | None
    ) -> None:
        self._checkpoint = checkpoint
        self._decode = decode
        self._specials = SpecialTokens(checkpoint.specials)

    def lay_out(self, prompt: Prompt) -> LaidOut:
        """Return the prompt as the model takes it.

        Raises:
            EngineFailed: pictures for a model that takes none, or a chat that the template refuses.
        """
        turns = frames_as_pictures(prompt.turns)
        pictures = [part for turn in turns for part in turn.parts if isinstance(part, Picture)]
        text = self._rendered(turns, prompt.options.tools)
        tensors = self._with_pictures(text, pictures) if pictures else self._text_only(text)
        length = tensors["input_ids"].shape[1]
        is_thinking = self._checkpoint.reasons and text.rstrip().endswith(THINK)
        return LaidOut(_extended(tensors, prompt.emitted_ids), length, is_thinking)

    def _rendered(self, turns: tuple[Turn, ...], use: ToolUse | None) -> str:
        """Apply the template to lists of parts, or to plain texts where it wants those."""
        template = self._checkpoint.template
        if not template:
            raise EngineFailed("the checkpoint has no chat template: it is not a chat model")
        has_pictures = any(isinstance(part, Picture) for turn in turns for part in turn.parts)
        as_parts = has_pictures or self._checkpoint.processor is not None
        chat = [self._message(turn, as_parts) for turn in turns]
        tools = [{"type": "function", "function": f} for f in use.functions] if use else None
        try:
            return str(
                self._checkpoint.tokenizer.apply_chat_template(
                    chat,
                    tools=self._all_plain(tools),
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise EngineFailed(f"the model's chat template refuses this chat: {error}") from error

    def _message(self, turn: Turn, as_parts: bool) -> dict[str, Any]:
        message = {"role": turn.role, "content": self._content(turn, as_parts)}
        if turn.tool_calls:
            message["tool_calls"] = [self._call(call) for call in turn.tool_calls]
        if turn.tool_call_id is not None:
            message["tool_call_id"] = self._specials.broken(turn.tool_call_id)
        if turn.name is not None:
            message["name"] = self._specials.broken(turn.name)
        return message

    def _call(self, call: ToolCall) -> dict[str, Any]:
        """Return a call for the template, which wants arguments as an object where they are one."""
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = call.arguments
        function = {"name": call.name, "arguments": self._all_plain(arguments)}
        return {"type": "function", "function": function}

    def _content(self, turn: Turn, as_parts: bool) -> Any:
        if not as_parts:
            return "".join(
                self._specials.broken(part) for part in turn.parts if isinstance(part, str)
            )
        return [
            {"type": "text", "text": self._specials.broken(part)}
            if isinstance(part, str)
            else {"type": "image"}
            for part in turn.parts
        ]

    def _all_plain(self, value: Any) -> Any:
        match value:
            case str():
                return self._specials.broken(value)
            case dict():
                return {
                    self._specials.broken(name): self._all_plain(item)
                    for name, item in value.items()
                }
            case list():
                return [self._all_plain(item) for item in value]
        return value

    def _text_only(self, text: str) -> dict[str, torch.Tensor]:
        encoded = self._checkpoint.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _with_pictures(self, text: str, pictures: list[Picture]) -> dict[str, torch.Tensor]:
        if self._checkpoint.processor is None or self._decode is None:
            raise EngineFailed("this model takes no pictures")
        pixels = [self._decode(picture.data) for picture in pictures]
        try:
            return dict(
                self._checkpoint.processor(
                    text=[text],
                    images=pixels,
                    return_tensors="pt",
                    add_special_tokens=False,
                    input_data_format="channels_last",
                )
            )
        except (ValueError, TypeError) as error:
            raise EngineFailed(f"the model's processor refuses these pictures: {error}") from error


def _extended(
    tensors: dict[str, torch.Tensor], emitted_ids: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Append an earlier attempt's tokens, as attended text in whatever runs along the ids."""
    if not emitted_ids:
        return tensors
    shape = tensors["input_ids"].shape
    tails = {"input_ids": list(emitted_ids), "attention_mask": [1] * len(emitted_ids)}
    plain = [0] * len(emitted_ids)
    return {
        name: torch.cat([tensor, tensor.new_tensor([tails.get(name, plain)])], dim=1)
        if tensor.shape == shape
        else tensor
        for name, tensor in tensors.items()
    }

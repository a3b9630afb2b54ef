"""From turns to a model's tensors: the checkpoint's chat template, tokenizer and processor."""

from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract.errors import EngineFailed
from worker.engine.base import Picture, Prompt, Turn, frames_as_pictures
from worker.engine.special_tokens import SpecialTokens
from worker.engine.transformers.checkpoint import Checkpoint


class Layout:
    """Turns prompts into the arguments of `generate`. Not thread-safe: tokenizers are not."""

    def __init__(
        self, checkpoint: Checkpoint, decode: Callable[[bytes], NDArray[np.uint8]] | None
    ) -> None:
        self._checkpoint = checkpoint
        self._decode = decode
        self._specials = SpecialTokens(checkpoint.tokenizer)

    def inputs(self, prompt: Prompt) -> tuple[dict[str, torch.Tensor], int]:
        """Return the tensors, emitted tokens included, and the prompt's length without them.

        Raises:
            EngineFailed: pictures for a model that takes none, or a chat that the template refuses.
        """
        turns = frames_as_pictures(prompt.turns)
        pictures = [part for turn in turns for part in turn.parts if isinstance(part, Picture)]
        text = self._rendered(turns)
        tensors = self._with_pictures(text, pictures) if pictures else self._text_only(text)
        length = tensors["input_ids"].shape[1]
        return _extended(tensors, prompt.emitted_ids), length

    def _rendered(self, turns: tuple[Turn, ...]) -> str:
        """Apply the template to lists of parts, or to plain texts where it wants those."""
        tokenizer = self._checkpoint.tokenizer
        template = getattr(self._checkpoint.processor, "chat_template", None)
        template = template or tokenizer.chat_template
        if not template:
            raise EngineFailed("the checkpoint has no chat template: it is not a chat model")
        has_pictures = any(isinstance(part, Picture) for turn in turns for part in turn.parts)
        as_parts = has_pictures or self._checkpoint.processor is not None
        chat = [{"role": t.role, "content": self._content(t, as_parts)} for t in turns]
        try:
            return str(
                tokenizer.apply_chat_template(
                    chat, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise EngineFailed(f"the model's chat template refuses this chat: {error}") from error

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

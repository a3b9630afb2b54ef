"""Ask the demo model with plain transformers: no torchvision, no server, CPU or GPU."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from worker.demo import MODEL_DIR
from worker.demo.layout import PICTURE_TOKEN, Message, render


@dataclass(frozen=True)
class Prompt:
    """Messages that end with a user turn, and the pictures of their image parts in order."""

    messages: tuple[Message, ...]
    pictures: tuple[Image.Image, ...] = ()


class Reader:
    """The loaded model; answers greedily.

    Args:
        folder: a folder as `folder.write_folder` writes it.
        device: "cpu" or "cuda".
        dtype: of the arithmetic; the weights are stored as bfloat16.
    """

    def __init__(
        self, folder: Path = MODEL_DIR, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._pictures: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # theirs
            folder, backend="pil"
        )
        model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self._model = model.to(device).eval()
        self._picture_token = self._tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)

    def answer(self, prompt: Prompt, max_new_tokens: int = 128) -> str:
        """Answer one prompt."""
        return self.answers([prompt], max_new_tokens)[0]

    def answers(self, prompts: Sequence[Prompt], max_new_tokens: int = 128) -> list[str]:
        """Answer several prompts as one batch, in their order."""
        inputs = self.inputs(prompts)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return what `generate` takes: tokens padded on the left, and patches of all pictures."""
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        with ThreadPoolExecutor() as threads:
            processed = list(threads.map(self._patches, pictures))
        areas = iter([int(grid.prod()) // self._pictures.merge_size**2 for _, grid in processed])
        texts = [self._expanded(prompt, areas) for prompt in prompts]
        inputs = dict(self._tokenizer(texts, return_tensors="pt", padding=True))
        inputs.pop("token_type_ids", None)
        if processed:
            inputs["pixel_values"] = torch.cat([patches for patches, _ in processed])
            inputs["image_grid_thw"] = torch.cat([grid for _, grid in processed])
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._picture_token).int()
        return {name: value.to(self._device) for name, value in inputs.items()}

    def _patches(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        features = self._pictures(images=[picture], return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def _expanded(self, prompt: Prompt, areas: Any) -> str:
        """Write the prompt out with one picture token per cell."""
        before, *others = render(prompt.messages, answer_next=True).split(PICTURE_TOKEN)
        return before + "".join(PICTURE_TOKEN * next(areas) + text for text in others)

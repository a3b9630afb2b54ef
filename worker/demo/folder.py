"""The demo model's Hugging Face folder: its shape, its tokenizer and how it is written.

Needs the `cpu` extra (torch and transformers). `train.py` fills the folder, `reader.py` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from worker.demo.layout import ANSWER_END, CHAT_TEMPLATE, PICTURE_TOKEN, SPECIAL_TOKENS

VOCABULARY = 1024
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE  # pixels; a picture's sides become multiples of this, one token per cell
MIN_PIXELS = 112 * 112  # 16 tokens: a frame of a video
MAX_PIXELS = 336 * 336  # 144 tokens: the first answer token in well under a second on two cores
_END_OF_TEXT = SPECIAL_TOKENS[0]


def build_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE of `VOCABULARY` tokens; every Chinese character is a token apart.

    One token per character keeps new word orders readable for the model, and no streamed piece
    of a usual answer ends in the middle of a character.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{Han}，。？！、]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # theirs
        tokenizer_object=bpe,
        eos_token=ANSWER_END,
        pad_token=_END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=8192,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any) -> Any:
    """Make a Qwen2VLForConditionalGeneration of 7.4 million parameters, random and float32.

    Heads of 64 and two key/value heads: both engines of LMDeploy have kernels for that, and a pair
    of GPUs can share them. TurboMind knows vision heads of 64 and 80 only.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12]}
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 8192, "rope_theta": 10000.0, "rope_scaling": rope,
        "bos_token_id": ids[_END_OF_TEXT], "eos_token_id": ids[ANSWER_END],
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 4, "embed_dim": 256, "hidden_size": 256, "num_heads": 4, "mlp_ratio": 4,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        "in_channels": 3,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[PICTURE_TOKEN],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    return Qwen2VLForConditionalGeneration(config)


def write_folder(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write weights as bfloat16 and everything else that engines look for."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded: Any = Qwen2VLForConditionalGeneration(model.config)
    rounded.to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # theirs
        eos_token_id=tokenizer.convert_tokens_to_ids(ANSWER_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(_END_OF_TEXT),
        max_new_tokens=256,
        do_sample=False,
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _amend(folder / "config.json", architectures=model.config.architectures, dtype="bfloat16")
    _amend(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        image_token=PICTURE_TOKEN,
        video_token="<|video_pad|>",  # noqa: S106  # no password
        **{f"{name}_token": f"<|{name}|>" for name in ("vision_start", "vision_end")},
    )
    _write_preprocessors(folder)
    (folder / "model.safetensors").chmod(0o644)  # it comes readable by its owner only
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


_NOT_OURS = ("is_local", "local_files_only", "model_specific_special_tokens")
# what transformers adds to a tokenizer that was itself read from a folder


def _amend(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    values = {name: value for name, value in values.items() if name not in _NOT_OURS}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_preprocessors(folder: Path) -> None:
    shared: dict[str, Any] = {
        "processor_class": "Qwen2VLProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    kinds = {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    for name, kind in kinds.items():
        text = json.dumps(shared | kind, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

"""Write a vision-language model of random weights: for figures of speed, its answers mean nothing.

    python tests/gpu/random_model.py --arch qwen2_vl --size 2b --out ../qwen2-2b
    python tests/gpu/random_model.py --arch qwen3_vl --size 8b --out ../qwen3-8b

LMDeploy runs Qwen2-VL on TurboMind and Qwen3-VL on its PyTorch engine; transformers takes both. The
folder is whole: weights in bfloat16, tokenizer, chat template for text, pictures and videos,
processors, generation config. The same command gives the same model on the same kind of device and
Python. Needs torch and transformers, no network; a GPU makes it faster.
"""

import argparse
import json
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

CONTEXT_TOKENS = 32_768
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIALS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- macro shown(kind) -%}<|vision_start|><|{{ kind }}_pad|><|vision_end|>{%- endmacro -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'text' %}{{ part.text }}
{%- else %}{{ shown('video' if part.type.startswith('video') else 'image') }}{% endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the language model and, with `vision_`, what looks at pictures are.

    Of Qwen3-VL alone: `deepstack`, the vision layers that speak to the first layers of the language
    model, and `places`, how many places of a picture it has learnt.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vision_hidden: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    deepstack: tuple[int, ...]
    places: int

    @property
    def head(self) -> int:
        """Return the width of one head of the language model."""
        return self.hidden // self.heads


# 2b and 8b are those of Qwen3-VL but for the vocabulary, a fifth of its own.
SIZES = {
    "tiny": Size(8192, 256, 512, 4, 4, 2, 256, 512, 4, 4, (1,), 256),
    "2b": Size(32_768, 2048, 6144, 28, 16, 8, 1024, 4096, 24, 16, (5, 11, 17), 2304),
    "8b": Size(32_768, 4096, 12_288, 36, 32, 8, 1152, 4304, 27, 16, (8, 16, 24), 2304),
}
PATCH = {"qwen2_vl": 14, "qwen3_vl": 16}
NAME = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}


def write_random_model(arch: str, size: Size, folder: Path) -> int:
    """Write a checkpoint of `arch`, qwen2_vl or qwen3_vl, and return its number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(size.vocabulary)
    tokenizer.save_pretrained(folder)
    _write_processors(arch, folder)
    ids = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    model = _model((_qwen2_vl if arch == "qwen2_vl" else _qwen3_vl)(size, ids))
    model.generation_config = GenerationConfig(
        eos_token_id=ids[END], pad_token_id=ids[PAD], do_sample=False
    )
    model.save_pretrained(folder)
    return int(model.num_parameters())


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn `vocabulary` tokens from the text that every Python has: its own library."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    tokenizer.train_from_iterator((file.read_text("utf-8", "ignore") for file in library), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    if tokenizer.get_vocab_size() != vocabulary:  # the model would say ids that mean nothing
        raise SystemExit(f"{len(library)} files of Python's library give too few tokens")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(SPECIALS),
        model_max_length=CONTEXT_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16
        )
    return made


def _qwen2_vl(size: Size, ids: dict[str, int]) -> PreTrainedConfig:
    vision = {
        "embed_dim": size.vision_hidden,
        "hidden_size": size.hidden,
        "mlp_ratio": 4,
        "num_heads": size.vision_hidden // 64,  # TurboMind knows heads of 64 and of 80 alone
    }
    return Qwen2VLConfig(
        text_config=_text(size, ids, _rope(size, 1e6, (4, 6, 6))),
        vision_config=_vision(size, PATCH["qwen2_vl"]) | vision,
        **_shared(ids),
    )


def _qwen3_vl(size: Size, ids: dict[str, int]) -> PreTrainedConfig:
    rope = _rope(size, 5e6, (6, 5, 5)) | {"mrope_interleaved": True}
    vision = {
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_inner,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.hidden,
        "deepstack_visual_indexes": list(size.deepstack),
        "num_position_embeddings": size.places,
    }
    return Qwen3VLConfig(
        text_config=_text(size, ids, rope) | {"head_dim": size.head},
        vision_config=_vision(size, PATCH["qwen3_vl"]) | vision,
        **_shared(ids),
    )


def _rope(size: Size, theta: float, shares: tuple[int, int, int]) -> dict[str, Any]:
    """Return how places turn heads; `shares` are sixteenths for time, height and width."""
    sections = [share * size.head // 32 for share in shares]  # of half a head: pairs turn
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections}


def _text(size: Size, ids: dict[str, int], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        "bos_token_id": ids[PAD],
        "eos_token_id": ids[END],
    }


def _vision(size: Size, patch: int) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def _shared(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def _write_processors(arch: str, folder: Path) -> None:
    """Write how pictures and videos become patches; `size` counts pixels, of a video's frames."""
    common = {
        "processor_class": f"{NAME[arch]}Processor",
        "patch_size": PATCH[arch],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    picture = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": 256 * 256, "longest_edge": 980 * 1024},
    }
    video = {
        "video_processor_type": f"{NAME[arch]}VideoProcessor",
        "size": {"shortest_edge": 64 * 64, "longest_edge": 24 * 1024 * 1024},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(common | picture, indent=1))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(common | video, indent=1))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="A model of random weights.")
    parser.add_argument("--arch", choices=tuple(PATCH), required=True)
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder, made where it is missing")
    options = parser.parse_args()
    began = time.monotonic()
    parameters = write_random_model(options.arch, SIZES[options.size], options.out)
    took_s = time.monotonic() - began
    files = ", ".join(sorted(file.name for file in options.out.iterdir()))
    print(f"{options.out}: {parameters / 1e6:.1f} M parameters in {took_s:.1f} s: {files}")


if __name__ == "__main__":
    main()

"""A checkpoint folder, opened: model, tokenizer, processor, and what callers must know about them.

Nothing is downloaded and no code of a checkpoint is run.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from worker.contract.errors import EngineFailed
from worker.engine.alphabet import Alphabet
from worker.engine.picture_limits import picture_limits
from worker.engine.special_tokens import special_tokens
from worker.engine.transformers.sampling import neutral
from worker.engine.transformers.template import knows_reasoning, knows_tools, template_of

_DEFAULT_CONTEXT_TOKENS = 2048  # for the few configurations that do not say
_library: Any = transformers  # some of it is typed, some is not
_pictures: Any = AutoImageProcessor  # transformers 5.17 shows it by this path without torchvision

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model.

    `processor` is None for a text-only model; `sampling` is the checkpoint's own generation_config;
    `eos_ids` end an answer; `max_pixels` and `pixel_multiple` as in `ModelCard`; `template` is the
    chat template, `specials` the tokens that are no text; `alphabet` is None for a tokenizer whose
    tokens cannot be spelled.
    """

    model: Any
    tokenizer: Any
    processor: Any
    sampling: transformers.GenerationConfig
    eos_ids: frozenset[int]
    context_tokens: int
    max_pixels: int
    pixel_multiple: int
    template: str
    specials: frozenset[str]
    alphabet: Alphabet | None

    @property
    def knows_tools(self) -> bool:
        """True where calls can be offered, read and demanded."""
        return self.alphabet is not None and knows_tools(self.template, self.specials)

    @property
    def reasons(self) -> bool:
        """True where the model thinks before it answers."""
        return knows_reasoning(self.template, self.specials)

    def seat(self) -> Any:
        """Return the model for one prompt at a time: same weights, state of its own.

        Qwen2-VL and its kin keep the last prompt's position offsets on the module, so two prompts
        in one module could mix them up. Modules are copied, tensors are shared.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})


def open_checkpoint(name: str) -> Checkpoint:
    """Open a folder, or a hub id that is in the local cache.

    Raises:
        EngineFailed: a sentence that says what is missing or broken.
    """
    _library.logging.set_verbosity_error()
    _library.logging.disable_progress_bar()
    folder = _folder(name)
    try:
        return _open(folder)
    except Exception as error:  # each library that reads a file has errors of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineFailed(f"{name} cannot be loaded as a model: {reason[0]}") from error


def _folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EngineFailed(f"{name} is not a model folder: it has no config.json")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise EngineFailed(f"{name} has a config.json but no weights (*.safetensors)")
        return folder
    if folder.is_absolute() or name.startswith("."):
        raise EngineFailed(f"there is no model folder {name}")
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise EngineFailed(
            f"{name} is neither a folder nor in the local Hugging Face cache; "
            f"`hf download {name}` brings a hub model there"
        ) from error


def _open(folder: Path) -> Checkpoint:
    config = _library.AutoConfig.from_pretrained(folder, **_LOCAL)
    is_multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and _has_pictures(folder)
    model = _open_model(folder, config)
    sampling, model.generation_config = model.generation_config, neutral(model.generation_config)
    tokenizer = _library.AutoTokenizer.from_pretrained(folder, **_LOCAL)
    processor = _open_processor(folder, config, tokenizer) if is_multimodal else None
    max_pixels, multiple = picture_limits(processor)
    eos_ids = _eos_ids(sampling, tokenizer)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        processor=processor,
        sampling=sampling,
        eos_ids=eos_ids,
        context_tokens=_context_tokens(config),
        max_pixels=max_pixels,
        pixel_multiple=multiple,
        template=template_of(tokenizer, processor),
        specials=special_tokens(tokenizer),
        alphabet=Alphabet.of(tokenizer, eos_ids),
    )


def _open_model(folder: Path, config: Any) -> Any:
    """Load the weights as float32: what every CPU computes fastest and most exactly."""
    takes_pictures = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    family = "AutoModelForImageTextToText" if takes_pictures else "AutoModelForCausalLM"
    loader = getattr(_library, family)
    return loader.from_pretrained(folder, dtype=torch.float32, **_LOCAL).eval()


def _has_pictures(folder: Path) -> bool:
    names = ("preprocessor_config.json", "processor_config.json")
    return any((folder / name).is_file() for name in names)


def _open_processor(folder: Path, config: Any, tokenizer: Any) -> Any:
    """Assemble the processor from its parts, its pictures by Pillow and NumPy.

    AutoProcessor would ask for a video processor as well, and every one of those needs torchvision,
    which has no CPU build on some platforms. Clips come as pictures here, so none is needed.
    """
    parts = {
        "image_processor": _pictures.from_pretrained(folder, backend="pil", **_LOCAL),
        "tokenizer": tokenizer,
        "video_processor": None,
    }
    known: Any = PROCESSOR_MAPPING[type(config)]
    family = _without_video(known)
    unknown = [name for name in family.get_attributes() if name not in parts]
    if unknown:
        raise EngineFailed(f"models that need a {unknown[0]} are not supported on a CPU")
    described, _ = family.get_processor_dict(folder, **_LOCAL)
    return family.from_args_and_dict([parts[n] for n in family.get_attributes()], described)


def _without_video(family: Any) -> Any:
    """Return a processor class that takes None for its video processor."""

    def check(self: Any, name: str, argument: Any) -> Any:
        if argument is None:
            return type(None)
        return family.check_argument_for_proper_class(self, name, argument)

    return type(family.__name__, (family,), {"check_argument_for_proper_class": check})


def _context_tokens(config: Any) -> int:
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or _DEFAULT_CONTEXT_TOKENS)


def _eos_ids(sampling: transformers.GenerationConfig, tokenizer: Any) -> frozenset[int]:
    given = sampling.eos_token_id
    ids = given if isinstance(given, list) else [given]
    return frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)

"""Whether guided decoding can keep to a form, tried with the model's own tokens. Runs on a CPU.

The engine compiles each form that is new to it on its loop, while all others wait. One that
XGrammar can read but not compile ends the PyTorch engine with all that is inside.
"""

import json
from functools import lru_cache
from typing import Any

from lmdeploy._guided_decoding import compile_response_format

REMEMBERED_FORMS = 256


class Forms:
    """Compiles as the engine will. `tokenizer` is transformers'."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._compiler: Any = None  # only models that are asked for a form pay for it
        self._fault = lru_cache(REMEMBERED_FORMS)(self._found)

    def check(self, form: dict[str, Any]) -> None:
        """Raise ValueError where the engine cannot keep to a form."""
        fault = self._fault(json.dumps(form))
        if fault is not None:
            raise ValueError(fault)

    def _found(self, form: str) -> str | None:
        try:
            compiler = self._opened()
            compile_response_format(compiler, json.loads(form))
            compiler.clear_cache()  # it has no limit, and large forms take tens of megabytes
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            return str(error)
        return None

    def _opened(self) -> Any:
        if self._compiler is None:
            # Imported here: half a second that few readers need.
            from lmdeploy.pytorch.engine.guided_process import (  # noqa: PLC0415
                GuidedDecodingManager,
            )

            self._compiler = GuidedDecodingManager(self._tokenizer, None).compiler
        return self._compiler

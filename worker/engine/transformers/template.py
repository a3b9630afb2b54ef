"""What a checkpoint's chat template can say: whether it knows tools, and in which form."""

import re
from typing import Any

from worker.engine.channels import CALL, THINK, THINK_END

_OTHER_FORM = "<function="  # calls between the same marks, but not as JSON


def template_of(tokenizer: Any, processor: Any) -> str:
    """Return a checkpoint's chat template, an empty text where it has none."""
    return str(getattr(processor, "chat_template", None) or tokenizer.chat_template or "")


def knows_tools(template: str, specials: frozenset[str]) -> bool:
    """Return whether a template offers tools and its calls are of the form that we read.

    `specials` are tokens that are no text: a mark among them would never be seen.
    """
    offers = re.search(r"\btools\b", template) is not None
    return offers and CALL in template and _OTHER_FORM not in template and CALL not in specials


def knows_reasoning(template: str, specials: frozenset[str]) -> bool:
    """Return whether a template says that its model thinks before it answers."""
    return THINK_END in template and not {THINK, THINK_END} & specials

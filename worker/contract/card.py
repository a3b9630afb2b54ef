"""What a served model's card says of the options that its engine honours."""

from typing import Any

from worker.contract.errors import OptionUnsupported
from worker.contract.job import ChatRequest


def check_options(chat: ChatRequest, card: dict[str, Any]) -> None:
    """Refuse what the model's engine cannot honour, as far as the model is known yet.

    Done at submission, and once more in the worker: a configured model takes jobs before its first
    card is there, and a card changes where another worker serves the name.
    """
    speaks_of_tools = any(m.tool_calls or m.tool_call_id for m in chat.messages)
    asked = chat.options.keys() | ({"tools"} if speaks_of_tools else set())
    for name in sorted(asked - set(card.get("options", asked)) - {"max_tokens"}):
        raise OptionUnsupported(
            f"the {card['engine']} engine of {card['model']} cannot honour {name}", param=name
        )

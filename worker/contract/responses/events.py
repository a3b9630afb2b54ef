"""A job's events as those of its response: OpenAI's names, numbered from 0 without a gap.

The two numberings differ: one of the job's events may be none of the response's or several. So the
response's events are always told from the job's first one on, and a reader who resumes is told only
those after his. The telling depends on the job's log and record alone: every reader in every
process gets the same events under the same numbers, live or afterwards.
"""

import json
from typing import Any

from worker.contract.events import STATUS, Event
from worker.contract.responses import event_type, output

Told = list[dict[str, Any]]


class Telling:
    """One response's events, in order: `begin`, then `tell` for each of the job's, then `end`."""

    def __init__(self, blank: dict[str, Any]) -> None:
        """`blank` is the response as it was when it was made, see `view.blank`."""
        self._blank = blank
        self._number = 0
        self._index = -1  # of the output item that is open, or was last
        self._open: str | None = None  # its type
        self._is_running = False
        self._thoughts = self._text = ""
        self._logprobs: Told = []
        self._logprobs_told = 0

    def begin(self) -> Told:
        """Return what is told of a response that is queued: the job's own first event."""
        return [
            self._numbered(name, response=self._blank)
            for name in ("response.created", "response.queued")
        ]

    def tell(self, event: Event) -> Told:
        """Return what a job's event, not its last, is in the response's; often nothing.

        Calls of functions are told at the end: an answer may still come before them. A job that
        goes back to its queue because its worker died is still in progress here.
        """
        if event.kind == STATUS:
            return self._started(json.loads(event.data)["status"])
        said, told = event.said, Told()
        self._logprobs += said.logprobs
        if said.reasoning and not self._text:
            told += self._think(said.reasoning)
        if said.text:
            told += self._say(said.text)
        return told

    def end(self, response: dict[str, Any]) -> Told:
        """Return what is told when the job is over; `response` is the final one."""
        status = output.item_status(response["status"])
        told = Told()
        kinds = [item["type"] for item in response["output"]]
        if "message" in kinds and not self._text:
            told += self._open_message(status)
        told += self._close(status)
        for item in response["output"]:
            if item["type"] == "function_call":
                told += self._call(item)
        # A stream has no response.cancelled: to clients it is incomplete, and says so inside.
        name = "incomplete" if response["status"] == "cancelled" else response["status"]
        return [*told, self._numbered(event_type(name), response=response)]

    def _started(self, status: str) -> Told:
        if self._is_running or status != "in_progress":
            return []
        self._is_running = True
        response = self._blank | {"status": "in_progress"}
        return [self._numbered("response.in_progress", response=response)]

    def _think(self, text: str) -> Told:
        told = Told()
        if self._open is None:
            item = output.reasoning(self._blank["id"], None, "in_progress")
            told += self._opening(item, output.reasoning_part(""))
        self._thoughts += text
        return [*told, self._in_part("reasoning_text.delta", delta=text)]

    def _say(self, text: str) -> Told:
        told = [] if self._open == "message" else self._open_message("completed")
        self._text += text
        return [*told, self._delta(text)]

    def _open_message(self, status_before: str) -> Told:
        closing = self._close(status_before)
        item = output.message(self._blank["id"], None, "in_progress")
        return [*closing, *self._opening(item, output.text_part(""))]

    def _opening(self, item: dict[str, Any], part: dict[str, Any]) -> Told:
        self._open = item["type"]
        self._index += 1
        return [self._of_item("added", item), self._in_part("content_part.added", part=part)]

    def _close(self, status: str) -> Told:
        """Return what ends the item that is open, if one is."""
        kind, response_id = self._open, self._blank["id"]
        if kind is None:
            return []
        if kind == "reasoning":
            item = output.reasoning(response_id, self._thoughts, status)
            done = [self._in_part("reasoning_text.done", text=self._thoughts)]
        else:
            part = output.text_part(self._text, self._logprobs)
            item = output.message(response_id, part, status)
            rest = [self._delta("")] if self._logprobs_told < len(self._logprobs) else []
            spelled = [_spelled(entry) for entry in self._logprobs]
            done = [*rest, self._in_part("output_text.done", text=self._text, logprobs=spelled)]
        done.append(self._in_part("content_part.done", part=item["content"][0]))
        self._open = None
        return [*done, self._of_item("done", item)]

    def _call(self, item: dict[str, Any]) -> Told:
        self._index += 1
        arguments, where = item["arguments"], {"item_id": item["id"], "output_index": self._index}
        name = "response.function_call_arguments"
        return [
            self._of_item("added", item | {"arguments": "", "status": "in_progress"}),
            self._numbered(f"{name}.delta", **where, delta=arguments),
            self._numbered(f"{name}.done", **where, arguments=arguments),
            self._of_item("done", item),
        ]

    def _delta(self, text: str) -> dict[str, Any]:
        """Return a piece of the answer with the log probabilities since the last one."""
        fresh = [_spelled(entry) for entry in self._logprobs[self._logprobs_told :]]
        self._logprobs_told = len(self._logprobs)
        return self._in_part("output_text.delta", delta=text, logprobs=fresh)

    def _of_item(self, what: str, item: dict[str, Any]) -> dict[str, Any]:
        return self._numbered(f"response.output_item.{what}", output_index=self._index, item=item)

    def _in_part(self, name: str, **fields: Any) -> dict[str, Any]:
        named = output.reasoning_id if self._open == "reasoning" else output.message_id
        place = {"item_id": named(self._blank["id"]), "output_index": self._index}
        return self._numbered(f"response.{name}", **place, content_index=0, **fields)

    def _numbered(self, name: str, **fields: Any) -> dict[str, Any]:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def _spelled(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry as streams have it: without bytes."""
    top = [
        {"token": other["token"], "logprob": other["logprob"]} for other in entry["top_logprobs"]
    ]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}

"""How messages become the text that the demo model reads: template, picture marks, video frames.

`CHAT_TEMPLATE` is what engines apply; `render` is the same in plain Python, fast enough for the
loaders of the training (tests/demo/ checks that both agree).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PICTURE_TOKEN = "<|image_pad|>"  # noqa: S105  # no password; stands once per merged patch
PICTURE_MARK = f"<|vision_start|>{PICTURE_TOKEN}<|vision_end|>"
ANSWER_START = "<|im_start|>assistant\n"
ANSWER_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}"
    "{%- if part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type in ('video', 'video_url') or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Qwen2-VL's form without its default system message; contents are strings or lists of parts."""

FRAME_LABEL = "Frame{number}: "
"""Text before each frame of a video, number from 1; a line break follows each frame.

A video of three frames before the question 描述视频 is, where [picture] stands for one picture:

    Frame1: [picture]
    Frame2: [picture]
    Frame3: [picture]
    描述视频
"""

VIDEO_FRAME_MAX_PIXELS = 168 * 168
"""Width times height to which frames are best shrunk: eight of them are about 200 tokens."""

Message = dict[str, Any]


def picture_part() -> dict[str, str]:
    """Return the content part that stands for one picture."""
    return {"type": "image"}


def text_part(text: str) -> dict[str, str]:
    """Return the content part for a piece of text."""
    return {"type": "text", "text": text}


def frame_parts(frames: int) -> list[dict[str, str]]:
    """Return the content parts of a video: label, picture, line break, for each frame."""
    parts: list[dict[str, str]] = []
    for number in range(1, frames + 1):
        parts += [text_part(FRAME_LABEL.format(number=number)), picture_part(), text_part("\n")]
    return parts


def render(messages: Sequence[Message], *, answer_next: bool) -> str:
    """Write messages as `CHAT_TEMPLATE` does.

    Args:
        messages: each has `role` and `content`, a string or a list of text and image parts.
        answer_next: end with the opening of the assistant's answer.
    """
    text = "".join(
        f"<|im_start|>{message['role']}\n{_content(message['content'])}{ANSWER_END}\n"
        for message in messages
    )
    return text + ANSWER_START if answer_next else text


def _content(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(PICTURE_MARK if part["type"] == "image" else part["text"] for part in content)

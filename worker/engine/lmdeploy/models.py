"""The models by the names of the guide, and the two that left LMDeploy."""

from dataclasses import dataclass
from pathlib import Path

from worker.contract.errors import EngineFailed

_HUB_IDS = {
    "internvl2-2b": "OpenGVLab/InternVL2-2B",
    "deepseek-vl-1_3b-chat": "deepseek-ai/deepseek-vl-1.3b-chat",
    "minicpm-v-v2_5-chat": "openbmb/MiniCPM-Llama3-V-2_5",
    "glm4v-9b-chat": "THUDM/glm-4v-9b",
}
"""The guide's name, written with hyphens → hub id."""


@dataclass(frozen=True, slots=True)
class _Gone:
    """A model that LMDeploy no longer runs; `last` is the last version that does."""

    names: frozenset[str]
    title: str
    last: str
    since: str


_GONE = (
    _Gone(
        frozenset({"qwen-vl-chat", "qwen/qwen-vl-chat", "qwen/qwen-vl"}),
        "Qwen-VL-Chat",
        last="0.14.0",
        since="0.15.0",
    ),
    _Gone(
        frozenset(
            {
                "internlm-xcomposer2-5-7b-chat",
                "internlm/internlm-xcomposer2d5-7b",
                "shanghai-ai-laboratory/internlm-xcomposer2d5-7b",
            }
        ),
        "InternLM-XComposer2.5",
        last="0.14.0",
        since="0.15.0",
    ),
)


def hub_id(name: str) -> str:
    """Return the hub id of one of the guide's names, and any other name or folder as it is.

    Raises:
        EngineFailed: LMDeploy no longer runs this model; the sentence names the version that did.
    """
    if Path(name).is_dir():
        return name
    plain = name.lower().replace("_", "-")
    for gone in _GONE:
        if plain in gone.names:
            raise EngineFailed(
                f"LMDeploy runs {gone.title} no more since {gone.since}; {gone.last} was the last "
                "version with it. Take a newer model, such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
    return next((hub for own, hub in _HUB_IDS.items() if own.replace("_", "-") == plain), name)

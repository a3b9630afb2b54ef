"""The models by the names of the guide, and those of them that left LMDeploy."""

from dataclasses import dataclass
from pathlib import Path

from worker.contract.errors import EngineFailed

_HUB_IDS = {
    "internvl2-2b": "OpenGVLab/InternVL2-2B",
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
        last="0.13.0",
        since="0.14.0",
    ),
    _Gone(
        frozenset(
            {
                "deepseek-vl-1-3b-chat",
                "deepseek-ai/deepseek-vl-1.3b-chat",
                "deepseek-ai/deepseek-vl-1.3b-base",
                "deepseek-ai/deepseek-vl-7b-chat",
                "deepseek-ai/deepseek-vl-7b-base",
            }
        ),
        "DeepSeek-VL",
        last="0.13.0",
        since="0.14.0",
    ),
    _Gone(
        frozenset({"minicpm-v-v2-5-chat", "openbmb/minicpm-llama3-v-2-5"}),
        "MiniCPM-Llama3-V-2.5",
        last="0.13.0",
        since="0.14.0",
    ),
)
"""Source: LMDeploy's history. 0.14.0 took the last three out of TurboMind, which alone ran them,
and left what reads their pictures, of two to this day. 0.15.0 removed the first."""


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

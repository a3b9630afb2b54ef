"""What the media stage and its decoder process say to each other, as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from worker.contract.job import VideoPolicy

ANSWER_FILE = "answer.json"  # in the order's folder; standard output belongs to FFmpeg's moods


@dataclass(frozen=True, slots=True)
class Order:
    """One video to sample, and the bounds within which the decoder process has to stay.

    `demuxer` is FFmpeg's name of the sniffed format: nothing else is probed. `max_pixels` bounds a
    source frame, `frame_max_pixels` and `multiple` a frame of the answer. `memory_bytes` is address
    space, `cpu_s` processor time. `parent_pid` is whose death ends the process.
    """

    path: Path
    folder: Path
    demuxer: str
    policy: VideoPolicy
    max_frames: int
    max_pixels: int
    max_s: float
    frame_max_pixels: int
    multiple: int
    memory_bytes: int
    cpu_s: int
    parent_pid: int

    def as_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        return asdict(self) | {"path": str(self.path), "folder": str(self.folder)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the wire form."""
        plain = {"path": Path(data["path"]), "folder": Path(data["folder"])}
        return cls(**(data | plain | {"policy": VideoPolicy(**data["policy"])}))


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled frame: a JPEG in the order's folder, its size, its moment (s from the start)."""

    name: str
    width: int
    height: int
    time_s: float

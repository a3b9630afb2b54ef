"""The only door to decord and PyAV. Only the decoder process imports it: both are C, on any bytes.

decord decodes. PyAV looks first, at headers only, and takes over what decord gets wrong or refuses:
MPEG streams and HEVC (off by a group of pictures, silently), edit lists, planar RGB, odd files.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import av.logging
import decord
import numpy as np
from av.stream import Disposition
from decord import DECORDError

from worker.contract.errors import MediaTooLarge, MediaUnreadable, MediaUnsupported
from worker.media import sampling
from worker.media.image import Pixels, encode_frame
from worker.media.order import Order, Sample

THREADS = 2  # decord's gain ends there
BATCH_BYTES = 256 * 1024 * 1024  # raw frames held at a time
PEEK_PACKETS = 64  # an edit list that cuts the start marks packets at the start
MISSING = 0.1  # share of the announced length without which a file counts as cut off
SLACK_S = 0.5

Frame = tuple[float, Pixels]
"""A moment in seconds from the first frame, and what is on screen then."""

_MPEG_STREAMS = frozenset({"mpegts", "mpeg"})
_OPEN_GOP_CODECS = frozenset({"hevc"})  # x265's default; decord seeks up to 11 frames off in it

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)


def sample(order: Order) -> list[Sample]:
    """Write the frames that the order asks for into its folder, in time order.

    Raises:
        MediaUnreadable: damaged, cut off, or without frames.
        MediaUnsupported: no video stream, or frames of an extreme shape.
        MediaTooLarge: longer, larger or more frames than the order's limits.
        InvalidRequest: the clip asked for is empty.
        MemoryError: the frames do not fit into the order's address space.
    """
    try:
        header = _look(order)
        if not header.suits_decord:
            return _written(order, _by_av(order, header))
        try:
            return _written(order, _by_decord(order, header))
        except (DECORDError, RuntimeError):
            return _written(order, _by_av(order, header))
    except MemoryError:  # PyAV's is both this and an FFmpegError
        raise
    except av.FFmpegError as error:
        raise MediaUnreadable(f"the video is damaged or cut off ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says of itself: how long its video plays (0: nothing), who had better read it."""

    announced_s: float
    suits_decord: bool


def _look(order: Order) -> _Header:
    """Read the header and refuse what is out of bounds, before anything is decoded."""
    with _opened(order) as container:
        stream = _video_stream(container)
        announced_s = _announced_s(container, stream)
        if stream.width * stream.height > order.max_pixels:
            raise MediaTooLarge(
                f"the video has {stream.width} × {stream.height} pixels; "
                f"the limit is {order.max_pixels}"
            )
        sampling.check_length(announced_s, order.max_s)
        return _Header(announced_s, _suits_decord(order, container, stream))


def _announced_s(container: Any, stream: Any) -> float:
    """Return the video's length by the header; a file's own length may be that of its sound."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return 0.0


def _suits_decord(order: Order, container: Any, stream: Any) -> bool:
    if order.demuxer in _MPEG_STREAMS or stream.codec_context.name in _OPEN_GOP_CODECS:
        return False
    if (stream.pix_fmt or "").startswith("gbr"):
        return False
    packets = itertools.islice(container.demux(stream), PEEK_PACKETS)
    return not any(packet.is_discard for packet in packets)


def _opened(order: Order) -> Any:
    # The sniffed format only, and no protocol but the file: a playlist that names other files or
    # addresses is never followed.
    return av.open(str(order.path), format=order.demuxer, options={"protocol_whitelist": "file"})


def _video_stream(container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise MediaUnsupported("the file has no video in it, only sound or a cover picture")


def _by_decord(order: Order, header: _Header) -> Iterator[Frame]:
    starts_s = _decord_timeline(order)
    chosen = _chosen(order, header, starts_s)
    for batch in _batches(chosen, order.max_pixels):
        pixels = _decord_batch(order, batch)
        yield from zip((starts_s[index] for index in batch), pixels, strict=True)


def _decord_timeline(order: Order) -> list[float]:
    reader = _reader(order)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    return [float(start) for start in np.sort(starts) - starts.min()]


def _decord_batch(order: Order, indexes: Sequence[int]) -> Iterable[Pixels]:
    # Opened for each batch: a reader that is left open reads ahead, some 350 MB a second.
    pixels: Iterable[Pixels] = _reader(order).get_batch(list(indexes)).asnumpy()
    return pixels


def _reader(order: Order) -> Any:
    return decord.VideoReader(str(order.path), num_threads=THREADS)


def _batches(indexes: Sequence[int], frame_pixels: int) -> Iterator[Sequence[int]]:
    size = max(1, BATCH_BYTES // (3 * frame_pixels))
    for first in range(0, len(indexes), size):
        yield indexes[first : first + size]


def _by_av(order: Order, header: _Header) -> Iterator[Frame]:
    """Decode from the start; exact where seeking is not."""
    starts_s, origin_s = _av_timeline(order)
    wanted = [starts_s[index] for index in _chosen(order, header, starts_s)]
    with _opened(order) as container:
        stream = _video_stream(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        for frame in container.decode(stream):
            if not wanted:
                return
            moment_s = (frame.time or 0.0) - origin_s
            if moment_s >= wanted[0] - 1e-4:  # timestamps are exact but for floating point
                wanted = [later for later in wanted if later > moment_s + 1e-4]
                yield moment_s, _pixels(frame)
    if wanted:
        raise MediaUnreadable("the video ends before its last frames")


def _av_timeline(order: Order) -> tuple[list[float], float]:
    """Return when each frame appears, from 0, and the file's own time of the first one."""
    with _opened(order) as container:
        stream = _video_stream(container)
        stamps = [
            packet.dts if packet.pts is None else packet.pts  # AVI has no pts, Matroska not all dts
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        ticks = sorted(float(stamp * stream.time_base) for stamp in stamps if stamp is not None)
    first = ticks[0] if ticks else 0.0
    return [tick - first for tick in ticks], first


def _pixels(frame: Any) -> Pixels:
    """Return a frame as RGB and upright; PyAV, unlike decord, leaves phone videos lying."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _chosen(order: Order, header: _Header, starts_s: Sequence[float]) -> list[int]:
    duration_s = sampling.length(starts_s)
    if duration_s < header.announced_s * (1 - MISSING) - SLACK_S:
        raise MediaUnreadable(
            f"the video is cut off: {duration_s:.1f} s of {header.announced_s:.1f} s are there"
        )
    sampling.check_length(duration_s, order.max_s)
    wanted_s = sampling.moments(duration_s, order.policy, order.max_frames)
    return sampling.frames_at(wanted_s, starts_s)


def _written(order: Order, frames: Iterable[Frame]) -> list[Sample]:
    return [_write(order, f"{n:04}.jpg", frame) for n, frame in enumerate(frames)]


def _write(order: Order, name: str, frame: Frame) -> Sample:
    moment_s, pixels = frame
    picture = encode_frame(pixels, order.frame_max_pixels, order.multiple)
    (order.folder / name).write_bytes(picture.data)
    return Sample(name, picture.width, picture.height, round(moment_s, 6))

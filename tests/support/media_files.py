"""Tiny pictures and videos, good and bad, made in memory."""

import io
import struct
import tempfile
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

GREY_STEP = 4
"""Frame n of a video is an even grey of n × GREY_STEP: its own number, whatever the codec."""

BOMB_SIDE = 50_000


def gradient(width: int, height: int) -> Pixels:
    """Return (height, width, 3): red grows to the right, green downwards, blue is even."""
    red = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, 0)
    green = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return np.dstack([red, green, np.full_like(red, 64)])


def picture(width: int = 64, height: int = 48, form: str = "PNG", **save: object) -> bytes:
    """Return the gradient as a file."""
    return encoded(Image.fromarray(gradient(width, height)), form, **save)


def encoded(image: Image.Image, form: str = "PNG", **save: object) -> bytes:
    """Return a Pillow picture as a file."""
    out = io.BytesIO()
    image.save(out, form, **save)
    return out.getvalue()


def turned_jpeg(orientation: int, width: int = 64, height: int = 48) -> bytes:
    """Return a JPEG whose camera was held at an angle, as EXIF numbers it (1 to 8)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(width, height, "JPEG", exif=exif, quality=95)


def bomb_png(side: int = BOMB_SIDE) -> bytes:
    """Return a valid PNG of a few hundred kilobytes that would decode to side × side pixels."""
    rows = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    body = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiled_tiff(side: int, *, in_64_bits: bool = False) -> bytes:
    """Return a TIFF of 64 × 64 black pixels, cut out of one tile of side × side.

    libtiff takes the tile's size in 64 bits as well, where Pillow sees no size at all.
    """
    rows = zlib.compressobj(9)
    tile = b"".join(rows.compress(bytes(side)) for _ in range(side)) + rows.flush()
    end = 8 + 2 + 10 * 12 + 4
    size = (17, 1, end) if in_64_bits else (4, 1, side)
    fields = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
              (277, 3, 1, 1), (322, *size), (323, *size), (324, 4, 1, end + 8),
              (325, 4, 1, len(tile))]  # fmt: skip
    entries = b"".join(struct.pack("<HHLL", *field) for field in fields)
    start = b"II*\0" + struct.pack("<LH", 8, len(fields))
    return start + entries + bytes(4) + struct.pack("<Q", side) + tile


def scanned_jpeg(scans: int, side: int = 256) -> bytes:
    """Return a valid JPEG whose decoder goes over the picture `scans` times, 13 bytes each."""
    frame = struct.pack(">BHHB", 8, side, side, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    parts = [
        b"\xff\xd8",
        _segment(0xDB, b"\0" + b"\1" * 64),
        _segment(0xC2, frame),
        # One code each, of one bit: a difference of nothing; a run of 2^14 and more empty blocks.
        _segment(0xC4, b"\x00\1" + bytes(15) + b"\x00"),
        _segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0"),
        _segment(0xDA, b"\3\1\0\2\0\3\0\0\0\0") + bytes(3 * (side // 8) ** 2 // 8),
        (_segment(0xDA, b"\1\1\0\1\x3f\0") + b"\x7f\xfe") * (scans - 1),
    ]
    return b"".join(parts) + b"\xff\xd9"


def animated_gif(frames: int = 10) -> bytes:
    """Return a GIF of 10 frames a second, each an even grey of its own."""
    pictures = [Image.new("L", (64, 48), grey(number)) for number in range(frames)]
    return encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=100)


def grey(number: int) -> int:
    """Return the grey of a video's frame."""
    return number * GREY_STEP % 256


def video(
    form: str = "mp4",
    *,
    frames: int = 60,
    fps: int = 30,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    cut_frames: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return a video of grey frames; `cut_frames` of its start are hidden by an edit list."""
    with tempfile.NamedTemporaryFile() as out:  # faststart moves the header in a second pass
        _write_video(out.name, form, frames, fps, size, codec, cut_frames, options or {})
        return Path(out.name).read_bytes()


def streamable_video(frames: int = 300) -> bytes:
    """Return an MP4 whose header comes first, so that a cut-off file still announces all of it."""
    return video(frames=frames, options={"movflags": "faststart"})


def _write_video(  # noqa: PLR0917 - `video` is its only caller
    path: str,
    form: str,
    frames: int,
    fps: int,
    size: tuple[int, int],
    codec: str,
    cut_frames: int,
    options: dict[str, str],
) -> None:
    with av.open(path, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000  # its default is too coarse to tell frames apart
        for packet in _packets(stream, frames, fps):
            if cut_frames:
                shift = round(cut_frames / fps / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            container.mux(packet)


def sound_only() -> bytes:
    """Return an MP4 with a second of silence and no video."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return out.getvalue()


def frameless_video() -> bytes:
    """Return an MP4 that announces a video stream and then has no frame in it."""
    whole = video(options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    return whole[: whole.index(b"moof") - 4]


def lying_video() -> bytes:
    """Return an MP4 whose header says: turn me by 90 degrees, as phones write it."""
    data = bytearray(video(size=(64, 48)))
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000
    )
    return bytes(data)


def _packets(stream: object, frames: int, fps: int) -> list[av.Packet]:
    width, height = stream.width, stream.height
    packets = []
    for number in range(frames):
        pixels = np.full((height, width, 3), grey(number), np.uint8)
        pixels[: height // 4, : width // 4] = 255 - grey(number)  # a corner that tells up from down
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, fps)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

"""What a file is, by its first bytes. Names and content types are claims and are not looked at."""

from dataclasses import dataclass

from worker.contract.errors import MediaUnreadable, MediaUnsupported
from worker.contract.job import MediaType

HEAD_BYTES = 512  # two packets of an MPEG transport stream and more than any other signature


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: `name` is ours, `demuxer` FFmpeg's for a video, `is_taken` our policy."""

    name: str
    kinds: frozenset[MediaType]
    content_type: str
    demuxer: str = ""
    is_taken: bool = True


_IMAGE: frozenset[MediaType] = frozenset({"image"})
_VIDEO: frozenset[MediaType] = frozenset({"video"})

JPEG = Format("jpeg", _IMAGE, "image/jpeg")
PNG = Format("png", _IMAGE, "image/png")
WEBP = Format("webp", _IMAGE, "image/webp")
BMP = Format("bmp", _IMAGE, "image/bmp")
TIFF = Format("tiff", _IMAGE, "image/tiff")
AVIF = Format("avif", _IMAGE, "image/avif")
HEIC = Format("heic", _IMAGE, "image/heic", is_taken=False)  # its decoder is an extra under LGPL
GIF = Format("gif", _IMAGE | _VIDEO, "image/gif", "gif")
MP4 = Format("mp4", _VIDEO, "video/mp4", "mov")
MATROSKA = Format("webm", _VIDEO, "video/webm", "matroska")
AVI = Format("avi", _VIDEO, "video/x-msvideo", "avi")
FLV = Format("flv", _VIDEO, "video/x-flv", "flv")
MPEG_TS = Format("mpegts", _VIDEO, "video/mp2t", "mpegts")
MPEG_PS = Format("mpeg", _VIDEO, "video/mpeg", "mpeg")

_AT_START = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"\x1a\x45\xdf\xa3", MATROSKA),
    (b"FLV\x01", FLV),
    (b"\x00\x00\x01\xba", MPEG_PS),
)
_RIFF = {b"WEBP": WEBP, b"AVI ": AVI}
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
# Movies older than `ftyp` begin with one of these boxes.
_BARE_BOXES = frozenset({b"moov", b"mdat", b"wide", b"styp", b"moof"})
_TS_PACKET, _TS_SYNC = 188, 0x47
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})  # sizes; "BM" alone begins many a text


def sniff(head: bytes) -> Format | None:
    """Return the format of a file from its first `HEAD_BYTES` bytes, None for an unknown one."""
    for magic, found in _AT_START:
        if head.startswith(magic):
            return found
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _branded(head)
    return _without_signature(head)


def _without_signature(head: bytes) -> Format | None:
    """Recognise what has no signature to speak of by what else it must have."""
    if head[4:8] in _BARE_BOXES:
        return MP4
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return BMP
    if len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == _TS_SYNC:
        return MPEG_TS
    return None


def require(head: bytes, wanted: MediaType) -> Format:
    """Return the format of a file that was handed in as `wanted`.

    Raises:
        MediaUnreadable: there are no bytes.
        MediaUnsupported: not a format that is taken, or a picture for a video and the reverse.
    """
    if not head:
        raise MediaUnreadable("the file is empty")
    found = sniff(head)
    if found is None:
        raise MediaUnsupported(f"the bytes are no {_NOUN[wanted]} in a format that is taken")
    if wanted not in found.kinds:
        other = _NOUN["video" if wanted == "image" else "image"]
        raise MediaUnsupported(f"the file is a {other} ({found.name}), sent as a {_NOUN[wanted]}")
    if not found.is_taken:
        raise MediaUnsupported(f"{found.name} pictures are not taken; convert it to JPEG or PNG")
    return found


_NOUN: dict[MediaType, str] = {"image": "picture", "video": "video"}


def _branded(head: bytes) -> Format:
    """Tell pictures from movies in an ISO base media file: by its major brand, then the others."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, others = head[8:12], {head[at : at + 4] for at in range(16, end, 4)}
    if major in _AVIF_BRANDS or (major in {b"mif1", b"msf1"} and others & _AVIF_BRANDS):
        return AVIF
    if major in _HEIC_BRANDS:
        return HEIC
    return MP4

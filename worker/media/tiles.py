"""How large a TIFF's tiles are: each is decoded whole, however little of it belongs to the picture.

Read here, for Pillow passes over fields that libtiff, which decodes, takes: in 64 bits, or after
others that are too long.
"""

import struct

_WIDTH, _LENGTH = 322, 323
_INLINE = {3: "H", 4: "L"}  # SHORT and LONG, which is what the specification allows here
_ENTRY_BYTES = 12


def tile_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of a TIFF's tiles, zeros for one that has none.

    Raises struct.error where the file ends before its fields do, ValueError for an odd field.
    """
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    (fields,) = struct.unpack_from(f"{order}H", data, start)
    sides = {_WIDTH: 0, _LENGTH: 0}
    for at in range(start + 2, start + 2 + fields * _ENTRY_BYTES, _ENTRY_BYTES):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag in sides:
            if kind not in _INLINE:
                raise ValueError("the size of its tiles is no number")
            (value,) = struct.unpack_from(order + _INLINE[kind], data, at + 8)
            sides[tag] = max(sides[tag], value)
    return sides[_WIDTH], sides[_LENGTH]

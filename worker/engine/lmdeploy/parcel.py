"""Tensors from process to process without a copy: a pickle and its buffers in one memfd.

A picture of 448 × 448 is 2.4 MB of patches. Through a socket each byte is copied four times, half
of that on the engine's loop; a memfd is mapped. /dev/shm would do the same, but containers give it
64 MB. The memory is freed when the last tensor that lies in it is.

Layout, all numbers 8 bytes little-endian: count of buffers, length of the pickle, length of each
buffer; then the pickle and the buffers, each at a multiple of 64.
"""

import io
import mmap
import os
import pickle
import struct
from typing import Any

import torch

_ALIGN = 64  # a cache line, and what tensor kernels like
_SMALL = 4096  # bytes; below, a tensor travels in the pickle


def pack(value: Any) -> int:
    """Lay a value into a new memfd; return its descriptor, which the caller closes."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    head = struct.pack(f"<{1 + len(parts)}Q", len(buffers), *(part.nbytes for part in parts))
    descriptor = os.memfd_create("forebay")
    offset = _aligned(len(head))
    os.pwrite(descriptor, head, 0)
    for part in parts:
        _write(descriptor, part, offset)
        offset = _aligned(offset + part.nbytes)
    os.ftruncate(descriptor, offset)
    return descriptor


def unpack(descriptor: int) -> Any:
    """Return the value; its tensors lie in the memfd, which may be closed at once."""
    memory = memoryview(mmap.mmap(descriptor, 0))
    (count,) = struct.unpack_from("<Q", memory)
    lengths = struct.unpack_from(f"<{1 + count}Q", memory, 8)
    offset = _aligned(8 * (2 + count))
    parts = []
    for length in lengths:
        parts.append(memory[offset : offset + length])
        offset = _aligned(offset + length)
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - our own child wrote it


class _Pickler(pickle.Pickler):
    """Puts the bytes of larger tensors beside the pickle."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor:
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        raw = pickle.PickleBuffer(flat.data) if flat.nbytes >= _SMALL else bytearray(flat)
        return _tensor, (str(value.dtype).removeprefix("torch."), tuple(value.shape), raw)


def _tensor(dtype: str, shape: tuple[int, ...], raw: Any) -> torch.Tensor:
    kind = getattr(torch, dtype)
    if not len(raw):
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(raw, dtype=kind).reshape(shape)


def _write(descriptor: int, part: memoryview, offset: int) -> None:
    while part.nbytes:
        written = os.pwrite(descriptor, part, offset)
        part, offset = part[written:], offset + written


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN

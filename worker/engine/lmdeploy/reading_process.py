"""A process that reads prompts: messages in by a socket, parcels out by another.

Started by `readers.Readers`. It sees no GPU, uses one thread, and ends with its parent.
"""

import pickle
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import torch

from worker.contract.errors import EngineFailed, JobError, OutOfMemory
from worker.contract.log import set_up
from worker.engine.child_process import die_with, ends_after, ignore_stops
from worker.engine.lmdeploy import parcel
from worker.engine.lmdeploy.reading import Read, Reader

TICKET = struct.Struct("<q")
"""What goes out with each parcel: the prompt's number, `READY` once the models are open."""
READY = -1

READ_S = 120.0
"""How long one prompt may take, dozens of frames on a busy machine included. One that takes longer
hangs; nobody else would notice while other processes give the engine enough to do."""
FORM_S = 15.0
"""How long its form may take to compile. The engine takes about as long, in which nobody gets a
token: there are schemas of 40 kB that take minutes."""

_LENGTH = struct.Struct("!I")


def main() -> None:
    """Run the process; its arguments: two sockets' descriptors, the parent's pid, a log level."""
    asked, told = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    set_up(sys.argv[4])
    ignore_stops()
    if not die_with(int(sys.argv[3])):
        return
    torch.set_num_threads(1)
    _serve(asked, told)


def _serve(asked: socket.socket, told: socket.socket) -> None:
    """Read prompts until the parent is gone. The first message says what to open."""
    messages = _messages(asked)
    try:
        reader = Reader(next(messages))
    except Exception as error:  # noqa: BLE001 - the edge of the process: the parent tells it on
        _tell(told, READY, _as_job_error(error, "what prepares prompts could not be opened"))
        return
    _tell(told, READY, True)
    for number, turns, options in messages:
        _tell(told, number, _read(reader, turns, options))


def _read(reader: Reader, turns: Any, options: Any) -> Read | JobError:
    try:
        with ends_after(READ_S):
            read = reader.read(turns, options)
        with ends_after(FORM_S):
            reader.check_form(options, is_thinking=read.is_thinking)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the parent tells it on
        return _as_job_error(error, "the prompt could not be prepared")
    return read


def _tell(told: socket.socket, number: int, value: Any) -> None:
    with open(parcel.pack(value), "rb") as held:  # noqa: PTH123 - a descriptor, no path
        socket.send_fds(told, [TICKET.pack(number)], [held.fileno()])


def _messages(asked: socket.socket) -> Iterator[Any]:
    """Yield what `wire.Outbox` at the other end posted, until that end is gone."""
    with asked.makefile("rb") as stream:
        while head := stream.read(_LENGTH.size):
            yield from pickle.loads(stream.read(_LENGTH.unpack(head)[0]))  # noqa: S301 - our parent


def _as_job_error(error: Exception, what: str) -> JobError:
    if isinstance(error, JobError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("the machine's memory does not suffice to prepare this prompt")
    return EngineFailed(f"{what}: {type(error).__name__}: {error}")

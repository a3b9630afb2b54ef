"""Lines out of an object, whatever their lengths."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batches import reader
from worker.batches.reader import LineReader


@dataclass
class Text:
    """An object of the store, as far as a reader asks."""

    data: bytes

    async def get_range(self, _key: str, start: int, length: int) -> bytes:
        return self.data[start : start + length]


async def read_all(data: bytes, most: int, *, line: int = 0, offset: int = 0) -> list[tuple]:
    made = LineReader(Text(data), "k", max_line_bytes=most, line=line, offset=offset)  # type: ignore[arg-type]
    found = []
    while page := await made.next_lines(3, 50):
        found += [(raw.number, raw.end, raw.data) for raw in page]
    return found


def expected(data: bytes, most: int) -> list[tuple]:
    found, end = [], 0
    for number, row in enumerate(data.splitlines(keepends=True), start=1):
        end += len(row)
        if len(row) > most:
            found.append((number, end, None))
        elif row.strip():
            found.append((number, end, row))
    return found


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_BYTES", 7)


TEXTS = st.lists(
    st.sampled_from([b"\n", b"a\n", b" \n", b"123456\n", b"1234567\n", b"x" * 30 + b"\n", b"end"]),
    max_size=12,
).map(b"".join)


@given(data=TEXTS, most=st.integers(5, 40))
async def test_every_line_comes_once_with_its_number_and_end(data: bytes, most: int):
    assert await read_all(data, most) == expected(data, most)


@given(data=TEXTS, cut=st.integers(0, 11))
async def test_a_reader_goes_on_where_another_stopped(data: bytes, cut: int):
    whole = await read_all(data, 100)
    line, offset = whole[cut][:2] if cut < len(whole) else (0, 0)

    rest = await read_all(data, 100, line=line, offset=offset)

    assert rest == [row for row in whole if row[1] > offset]


async def test_a_line_without_end_is_not_kept_in_memory():
    made = LineReader(Text(b"x" * 10_000 + b"\ny"), "k", max_line_bytes=20)  # type: ignore[arg-type]

    first, second = await made.next_lines(2, 100)

    assert (first.data, second.data) == (None, b"y")
    assert len(made._waiting) <= 20 + 2 * 7

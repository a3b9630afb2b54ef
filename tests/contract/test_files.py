"""Files: records, pages, ends, bytes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import MakeSettings
from worker.contract.door import RedisDoor
from worker.contract.errors import BodyTooLarge, FileGone, UnknownFile
from worker.contract.files import Files, StoredFile, new_file_id
from worker.contract.incoming import PART_BYTES, IncomingFile
from worker.contract.s3 import PART_MIN_BYTES, ObjectStore, file_key, results_key


@pytest.fixture
async def objects(
    make_settings: MakeSettings, s3_environ: dict[str, str]
) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(make_settings(**s3_environ))
    await store.ensure_bucket()
    yield store
    await store.close()


@pytest.fixture
def files(door: RedisDoor, objects: ObjectStore) -> Files:
    return Files(door, objects)


async def kept(
    files: Files, objects: ObjectStore, data: bytes = b"x", *, purpose: str = "vision",
    life_s: float | None = None,
) -> StoredFile:  # fmt: skip
    file_id = new_file_id()
    await objects.put_bytes(file_key(file_id), data, "image/png")
    return await files.add(
        file_id, len(data), "a.png", purpose, "image/png", file_key(file_id), life_s=life_s
    )


async def test_a_file_is_found_as_it_was_kept(files: Files, objects: ObjectStore):
    file = await kept(files, objects, b"abc")

    assert await files.get(file.id) == file
    assert b"".join([piece async for piece in files.content(file)]) == b"abc"
    assert b"".join([piece async for piece in files.content(file, 1, 2)]) == b"b"


async def test_what_was_never_there_is_told_from_what_is_gone(files: Files, objects: ObjectStore):
    file = await kept(files, objects)

    await files.delete(file.id)

    assert not await objects.exists(file.object_key)
    assert await files.find(file.id) is None
    with pytest.raises(FileGone):
        await files.get(file.id)
    with pytest.raises(FileGone):
        await files.delete(file.id)
    with pytest.raises(UnknownFile):
        await files.get(new_file_id())


async def test_pages_go_through_all_files_of_a_purpose_in_either_order(
    files: Files, objects: ObjectStore
):
    mine = [(await kept(files, objects)).id for _ in range(5)]
    await kept(files, objects, purpose="batch")

    pages: dict[str, list[str]] = {"asc": [], "desc": []}
    for order, found in pages.items():
        after, has_more = None, True
        while has_more:
            page, has_more = await files.list_files(
                purpose="vision", after=after, limit=2, order=order
            )
            found += [file.id for file in page]
            after = found[-1]

    assert sorted(pages["asc"]) == sorted(mine)
    assert pages["desc"] == pages["asc"][::-1]
    everything, _ = await files.list_files(purpose=None, after=None, limit=10, order="asc")
    assert len(everything) == 6
    with pytest.raises(UnknownFile):
        await files.list_files(purpose=None, after="file_x", limit=1, order="asc")


async def test_the_sweep_erases_what_is_over_and_nothing_else(files: Files, objects: ObjectStore):
    over = await kept(files, objects, life_s=-1)
    other = await kept(files, objects)

    assert await files.sweep() == 1
    assert await files.sweep() == 0
    assert not await objects.exists(over.object_key)
    assert await files.get(other.id) == other
    with pytest.raises(FileGone):
        await files.get(over.id)


async def test_a_file_that_is_over_is_gone_before_it_is_swept(files: Files, objects: ObjectStore):
    over = await kept(files, objects, life_s=-1)

    with pytest.raises(FileGone):
        await files.get(over.id)
    assert await files.list_files(purpose=None, after=None, limit=9, order="asc") == ([], False)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 7])
async def test_a_file_of_any_size_arrives_whole(objects: ObjectStore, size: int, tmp_path: Path):
    key, data = file_key(new_file_id()), bytes(range(256)) * (size // 256 + 1)
    incoming = IncomingFile(objects, key, "text/plain", max_bytes=size)

    for start in range(0, size, 999_983):
        await incoming.write(data[start : min(size, start + 999_983)])
    await incoming.close()

    path = tmp_path / "back"
    with path.open("wb") as out:
        await objects.get_to_file(key, out, size)
    assert path.read_bytes() == data[:size]
    assert incoming.size == size


async def test_a_file_over_its_limit_leaves_nothing(objects: ObjectStore):
    key = file_key(new_file_id())
    incoming = IncomingFile(objects, key, "text/plain", max_bytes=PART_BYTES + 1)
    await incoming.write(bytes(PART_BYTES))

    with pytest.raises(BodyTooLarge):
        await incoming.write(b"12")
    await incoming.drop()
    await incoming.drop()

    assert not await objects.exists(key)


async def test_an_object_is_made_of_the_named_parts_only(objects: ObjectStore):
    key = results_key(new_file_id())
    upload = await objects.begin_parts(key, "application/jsonl")
    first = await objects.put_part(key, upload, 1, b"a" * PART_MIN_BYTES)
    await objects.put_part(key, upload, 2, b"a stranger's")
    last = await objects.put_part(key, upload, 7, b"end")

    for _ in range(2):  # the answer may have been lost
        await objects.join_parts(key, upload, [(1, first), (7, last)])

    assert await objects.get_range(key, PART_MIN_BYTES - 1, 100) == b"aend"
    assert await objects.get_range(key, PART_MIN_BYTES + 3, 100) == b""

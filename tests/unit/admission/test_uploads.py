from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    InvalidRequestError,
    LoraplexError,
    NoEffectError,
    QuotaExceededError,
    StorageError,
    UploadBusyError,
    UploadMismatchError,
)
from loraplex_adapters.names import AdapterName
from loraplex_server.admission import uploads
from loraplex_server.admission.upload import MAX_CHUNK_BYTES, UploadClaim, _write_at
from loraplex_server.admission.uploads import UploadStaging
from loraplex_server.errors import DeadlineExceededError, UploadTooLargeError
from tests.unit.admission.packages import CONFIG, MANIFEST, SIGNATURE, WEIGHTS

_MAX_BYTES = 1000


class Clock:
    """The real time, and what a test adds."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def staging(tmp_path: Path, clock: Clock) -> UploadStaging:
    return UploadStaging(tmp_path / "staging", _MAX_BYTES, max_total_bytes=2500, keep_s=3600, clock=clock)


def claim(upload_id: str, kept: dict[str, bytes] | None = None, **fields: Any) -> UploadClaim:
    """What a call says that has `kept`, by file, in the beginning of its own files."""
    proofs = {name: hashlib.sha256(data).hexdigest() for name, data in (kept or {}).items()}
    return UploadClaim(
        upload_id=upload_id, received_sha256=proofs, **{"adapter": AdapterName("t", "shop"), **fields}
    )


async def break_off(
    staging: UploadStaging, upload_id: str, data: bytes = b"abc", config: bytes = b""
) -> None:
    """Send `data` of the weights and some of the configuration, then nothing."""
    with pytest.raises(DeadlineExceededError):
        await refuse(staging, upload_id, DeadlineExceededError("silent"), data, config)


async def refuse(
    staging: UploadStaging, upload_id: str, error: BaseException, data: bytes = b"abc", config: bytes = b""
) -> None:
    async with staging.open(claim(upload_id)) as upload:
        upload.append(WEIGHTS, 0, data)
        if config:
            upload.append(CONFIG, 0, config)
        raise error


def folders(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize("upload_id", ["", "ci-17"])
async def test_what_was_sent_lies_in_the_folder_until_the_end(
    staging: UploadStaging, tmp_path: Path, upload_id: str
) -> None:
    async with staging.open(claim(upload_id)) as upload:
        for name in (CONFIG, WEIGHTS, MANIFEST, SIGNATURE):
            upload.append(name, 0, b"abc")
            upload.append(name, 3, b"de")
        assert {path.name: path.read_bytes() for path in upload.folder.iterdir()} == dict.fromkeys(
            (CONFIG, WEIGHTS, MANIFEST, SIGNATURE), b"abcde"
        )

    assert folders(tmp_path) == []


async def test_an_upload_that_breaks_off_can_be_gone_on_with(staging: UploadStaging) -> None:
    await break_off(staging, "ci-17")

    assert staging.received("ci-17") == {WEIGHTS: 3}
    async with staging.open(claim("ci-17", {WEIGHTS: b"abc"})) as upload:
        with pytest.raises(
            InvalidRequestError, match=r"is 0, expected 3; .*GetUpload.* start_over.* another upload_id"
        ):
            upload.append(WEIGHTS, 0, b"abc")
        upload.append(WEIGHTS, 3, b"def")
        assert (upload.folder / WEIGHTS).read_bytes() == b"abcdef"
    with pytest.raises(AdapterNotFoundError):
        staging.received("ci-17")


OTHER_BYTES = [
    {WEIGHTS: b"abd"},
    {WEIGHTS: b"ab"},
    {WEIGHTS: b"abcd"},
    {WEIGHTS: b""},
    {WEIGHTS: b"abc", CONFIG: b"{}"},
    {WEIGHTS: b"abc", "../x": b"{}"},
]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("own", OTHER_BYTES, ids=str)
async def test_bytes_of_another_package_are_not_gone_on_with_and_stay(
    staging: UploadStaging, tmp_path: Path, own: dict[str, bytes], restarts: bool
) -> None:
    await break_off(staging, "ci-17")
    if restarts:
        staging = UploadStaging(tmp_path / "staging", _MAX_BYTES)

    with pytest.raises(UploadMismatchError, match="set start_over"):
        async with staging.open(claim("ci-17", own)):
            pytest.fail("a mixture")
    async with staging.open(claim("ci-17", {WEIGHTS: b"abc"})) as upload:
        assert (upload.folder / WEIGHTS).read_bytes() == b"abc"


@pytest.mark.parametrize("proved", [{}, {CONFIG: b"{"}], ids=str)
async def test_every_file_that_is_kept_needs_a_proof(
    staging: UploadStaging, proved: dict[str, bytes]
) -> None:
    await break_off(staging, "ci-17", b"abc", b"{")

    with pytest.raises(InvalidRequestError, match=rf"received_sha256: .*{WEIGHTS}.* set start_over"):
        async with staging.open(claim("ci-17", proved)):
            pytest.fail("a mixture")
    async with staging.open(claim("ci-17", proved, has_digest=True)):  # which is checked in the end
        pass


async def test_an_upload_is_of_the_adapter_that_it_was_begun_for(staging: UploadStaging) -> None:
    await break_off(staging, "ci-17")

    for adapter in (AdapterName("u", "shop"), AdapterName("t", "shop2")):
        for way in ({"kept": {WEIGHTS: b"abc"}}, {"starts_over": True}, {"has_digest": True}):
            with pytest.raises(UploadMismatchError, match="choose another upload_id"):
                async with staging.open(claim("ci-17", adapter=adapter, **way)):
                    pytest.fail("somebody else's")
    assert staging.received("ci-17") == {WEIGHTS: 3}


async def test_an_upload_that_is_started_over_has_nothing_of_before(staging: UploadStaging) -> None:
    await break_off(staging, "ci-17", bytes(1000))

    async with staging.open(claim("ci-17", starts_over=True)) as upload:
        assert list(upload.folder.iterdir()) == []
        upload.append(CONFIG, 0, bytes(1000))  # the bytes of before are free again


async def test_a_cancelled_upload_can_be_gone_on_with(staging: UploadStaging) -> None:
    with pytest.raises(asyncio.CancelledError):
        await refuse(staging, "ci-17", asyncio.CancelledError())

    assert staging.received("ci-17") == {WEIGHTS: 3}


async def test_an_upload_without_an_id_is_removed_whatever_happens(
    staging: UploadStaging, tmp_path: Path
) -> None:
    await break_off(staging, "")

    assert folders(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        AdapterInvalidError("bad"),
        AdapterExistsError("taken"),
        NoEffectError("none"),
        UploadTooLargeError("large"),
    ],
)
async def test_a_refused_package_is_not_kept(
    staging: UploadStaging, tmp_path: Path, error: LoraplexError
) -> None:
    with pytest.raises(type(error)):
        await refuse(staging, "ci-17", error)

    assert folders(tmp_path) == []


async def test_files_that_came_by_other_means_count_too(tmp_path: Path) -> None:
    staging = UploadStaging(tmp_path, 100, max_total_bytes=10)
    for _ in range(3):  # what was counted is given back
        async with staging.open() as upload:
            (upload.folder / WEIGHTS).write_bytes(b"x" * 8)
            upload.count_files()
    async with staging.open() as upload:
        (upload.folder / WEIGHTS).write_bytes(b"x" * 11)
        with pytest.raises(QuotaExceededError):
            upload.count_files()


async def test_an_id_is_for_one_call_at_a_time(staging: UploadStaging) -> None:
    async with staging.open(claim("ci-17")), staging.open(claim("ci-18")), staging.open(), staging.open():
        with pytest.raises(UploadBusyError, match="ci-17"):
            async with staging.open(claim("ci-17")):
                pass
    async with staging.open(claim("ci-17")):
        pass


@pytest.mark.parametrize("upload_id", ["..", "a/b", "x" * 64, "ä", "a b", "a\n", "a.b"])
async def test_an_id_out_of_range_is_refused(staging: UploadStaging, upload_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="upload_id"):
        async with staging.open(claim(upload_id)):
            pass
    with pytest.raises(InvalidRequestError, match="upload_id"):
        staging.received(upload_id)


@pytest.mark.parametrize(
    ("name", "offset", "data", "message"),
    [
        ("README.md", 0, b"x", "chunk.file_name"),
        ("../x", 0, b"x", "chunk.file_name"),
        (WEIGHTS, 0, b"", "chunk.data"),
        (WEIGHTS, 0, bytes(MAX_CHUNK_BYTES + 1), "chunk.data"),
        (WEIGHTS, 1, b"x", "is 1, expected 0"),
    ],
)
async def test_a_malformed_piece_is_refused(
    staging: UploadStaging, name: str, offset: int, data: bytes, message: str
) -> None:
    async with staging.open() as upload:
        with pytest.raises(InvalidRequestError, match=message):
            upload.append(name, offset, data)


async def test_the_budget_is_of_all_files_and_all_calls_together(staging: UploadStaging) -> None:
    await break_off(staging, "ci-17", bytes(600))

    async with staging.open(claim("ci-17", {WEIGHTS: bytes(600)})) as upload:
        upload.append(CONFIG, 0, bytes(400))
        with pytest.raises(UploadTooLargeError, match="1000 bytes"):
            upload.append(CONFIG, 400, b"x")


async def test_uploads_that_go_on_are_bounded_together(staging: UploadStaging) -> None:
    async with (
        staging.open(claim("one")) as one,
        staging.open() as two,
        staging.open(claim("three")) as three,
    ):
        one.append(WEIGHTS, 0, bytes(1000))
        two.append(WEIGHTS, 0, bytes(1000))
        three.append(WEIGHTS, 0, bytes(500))
        with pytest.raises(QuotaExceededError, match="2500 bytes"):
            three.append(CONFIG, 0, b"x")
    async with staging.open(claim("four")) as four:
        four.append(WEIGHTS, 0, bytes(1000))


async def test_what_is_kept_gives_way_to_what_goes_on_the_oldest_first(
    staging: UploadStaging, clock: Clock
) -> None:
    """A client that breaks off again and again, each time with an id of its own, takes nobody's room."""
    for upload_id in ("one", "two"):
        await break_off(staging, upload_id, bytes(1000))
        clock.ahead_s += 10

    async with staging.open(claim("three")) as upload:
        upload.append(WEIGHTS, 0, bytes(500))
        upload.append(CONFIG, 0, bytes(100))

    assert staging.received("two") == {WEIGHTS: 1000}
    with pytest.raises(AdapterNotFoundError):
        staging.received("one")


async def test_no_more_than_so_many_are_kept(
    staging: UploadStaging, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_KEPT", 2)
    for upload_id in ("one", "two", "three"):
        await break_off(staging, upload_id)
        clock.ahead_s += 10

    with pytest.raises(AdapterNotFoundError):
        staging.received("one")
    async with (
        staging.open(claim("two", {WEIGHTS: b"abc"})),
        staging.open(claim("three", {WEIGHTS: b"abc"})),
    ):
        with pytest.raises(QuotaExceededError, match="2 with an id"):
            await break_off(staging, "four")
        await break_off(staging, "")


async def test_an_upload_of_nothing_is_not_kept(staging: UploadStaging, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceededError):
        async with staging.open(claim("ci-17")):
            raise DeadlineExceededError("silent")

    assert folders(tmp_path) == []


async def test_what_broke_off_too_long_ago_is_removed(
    staging: UploadStaging, clock: Clock, tmp_path: Path
) -> None:
    await break_off(staging, "old", bytes(1000))
    clock.ahead_s = 1800
    await break_off(staging, "young", bytes(1000))
    clock.ahead_s = 3700

    staging.purge()

    with pytest.raises(AdapterNotFoundError, match="'old'"):
        staging.received("old")
    assert staging.received("young") == {WEIGHTS: 1000}
    async with staging.open() as upload:  # the bytes of the old one are free again
        upload.append(WEIGHTS, 0, bytes(1000))


async def test_an_upload_that_goes_on_is_never_removed(staging: UploadStaging, clock: Clock) -> None:
    async with staging.open(claim("ci-17")) as upload:
        upload.append(WEIGHTS, 0, b"abc")
        clock.ahead_s = 7200
        staging.purge()
        assert staging.received("ci-17") == {WEIGHTS: 3}


async def test_a_restart_keeps_what_can_be_gone_on_with_and_counts_it(
    staging: UploadStaging, clock: Clock, tmp_path: Path
) -> None:
    await break_off(staging, "ci-17", bytes(900))
    async with staging.open() as upload:
        upload.append(WEIGHTS, 0, b"abc")
        again = UploadStaging(tmp_path / "staging", _MAX_BYTES, max_total_bytes=1000, clock=clock)

        assert again.received("ci-17") == {WEIGHTS: 900}
        assert [folder.name for folder in folders(tmp_path)] == ["id-ci-17@t@shop"]
    async with again.open() as upload:
        upload.append(WEIGHTS, 0, bytes(101))
        with pytest.raises(AdapterNotFoundError):  # both would have been a byte too many
            again.received("ci-17")
    await break_off(again, "ci-18")
    clock.ahead_s = 4000
    UploadStaging(tmp_path / "staging", _MAX_BYTES, clock=clock)
    assert folders(tmp_path) == []


async def test_a_disk_that_fails_is_said_so_and_costs_no_bytes(staging: UploadStaging) -> None:
    async with staging.open() as upload:
        (upload.folder / WEIGHTS).mkdir()
        for _ in range(5):
            with pytest.raises(StorageError):
                upload.append(WEIGHTS, 0, bytes(1000))
        upload.append(CONFIG, 0, bytes(1000))


async def test_a_piece_of_a_cancelled_call_shifts_nothing(staging: UploadStaging) -> None:
    """Its thread may write when the next call is at the same upload already."""
    async with staging.open(claim("ci-17")) as late:
        late.append(WEIGHTS, 0, b"abc")
        folder = late.folder
        _write_at(folder / WEIGHTS, 3, b"def")  # the thread of a call that has gone
        late.append(WEIGHTS, 3, b"def")
        assert (folder / WEIGHTS).read_bytes() == b"abcdef"


async def test_a_late_piece_of_a_cancelled_call_does_not_get_into_the_next_one(
    staging: UploadStaging,
) -> None:
    """Its thread is not cancelled with it, and may write what is of another package."""
    with pytest.raises(DeadlineExceededError):
        async with staging.open(claim("ci-17")) as late:
            raise DeadlineExceededError("silent")

    async with staging.open(claim("ci-17")) as upload:
        with pytest.raises(UploadBusyError):
            late.append(WEIGHTS, 0, b"abc")
        assert list(upload.folder.iterdir()) == []


async def test_a_call_that_is_cancelled_while_it_begins_leaves_the_upload_to_others(
    staging: UploadStaging,
) -> None:
    with staging._lock:  # so that it does not get further
        beginning = asyncio.create_task(refuse(staging, "ci-17", AssertionError("too late")))
        await asyncio.sleep(0.05)
        beginning.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await asyncio.sleep(0.05)  # for a thread that nobody waits for

    async with staging.open(claim("ci-17")):
        pass

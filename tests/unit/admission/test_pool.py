"""Every hostile package is refused by a process of its own, which neither grows nor stays away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from loraplex_adapters.errors import (
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterTooLargeError,
    DigestMismatchError,
    LoraplexError,
    NoEffectError,
    NonFiniteWeightsError,
    SignatureRequiredError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
)
from loraplex_adapters.package import PackageLimits, read_package
from loraplex_server.admission.jobs import AdmissionBudget, encode
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.admission.signature_trust import SignatureTrust
from loraplex_server.admission.worker import READY
from loraplex_server.errors import DrainingError
from tests.support import bad_packages
from tests.unit.admission.packages import (
    WEIGHTS,
    job,
    raw_safetensors,
    tensors,
    write_manifest,
    write_package,
)

_MIB = 2**20
_ANY_TIME_S = 30.0  # for what takes some milliseconds on a machine that is not busy


def a_rank_above_the_servers(folder: Path) -> None:
    write_package(folder, rank=32)


INVALID = [spoil for spoils in bad_packages.INVALID.values() for spoil in spoils]
KINDS = {7: UnsupportedFormatError, 9: NonFiniteWeightsError, 11: UnsupportedPeftFeatureError}
"""By row, what is told apart of INVALID."""
FOREIGN = [*bad_packages.FOREIGN, a_rank_above_the_servers]


def peak_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_a_sound_package_is_admitted_with_what_the_registry_keeps(
    pool: AdmissionPool, package: Path
) -> None:
    admitted = await pool.check(job(write_manifest(package)))

    assert admitted.digest == read_package(package).digest
    assert admitted.size_bytes == sum(t.nbytes for t in tensors().values())
    assert admitted.num_elements == sum(t.size for t in tensors().values())
    assert admitted.rank == 4
    assert admitted.target_modules == ("q_proj", "v_proj")
    assert admitted.served_module_count == 4
    assert admitted.manifest is not None
    assert admitted.manifest.name == "faq"
    assert (admitted.signer, admitted.warning) == ("", "")


async def test_every_malformed_package_is_refused_quickly_in_bounded_memory_by_the_same_process(
    pool: AdmissionPool, tmp_path: Path
) -> None:
    """Rows 6 to 12 of the list of faults; then 50 more in a row, and a sound one is still admitted."""
    (process_id,) = pool.process_ids
    refusals: dict[str, tuple[type[LoraplexError], float]] = {}
    fields: dict[str, str] = {}
    for spoil in (*INVALID, *FOREIGN):
        folder = write_package(tmp_path / spoil.__name__)
        spoil(folder)
        begin = time.monotonic()
        with pytest.raises((AdapterInvalidError, AdapterIncompatibleError)) as refused:
            await pool.check(job(folder))
        refusals[spoil.__name__] = (type(refused.value), time.monotonic() - begin)
        fields[spoil.__name__] = getattr(refused.value, "field", "")
        assert str(tmp_path) not in str(refused.value)
    for _ in range(50):
        with pytest.raises(AdapterInvalidError):
            await pool.check(job(tmp_path / bad_packages.duplicate_keys.__name__))

    expected: dict[str, type[LoraplexError]] = {spoil.__name__: AdapterInvalidError for spoil in INVALID}
    expected |= {spoil.__name__: error for row, error in KINDS.items() for spoil in bad_packages.INVALID[row]}
    expected |= {spoil.__name__: AdapterIncompatibleError for spoil in FOREIGN}
    assert {name: error for name, (error, _) in refusals.items()} == expected
    assert {name: field for name, field in fields.items() if field} == {
        spoil.__name__: field for spoil, field in bad_packages.FAULTY_FIELDS.items()
    }
    assert max(seconds for _, seconds in refusals.values()) < _ANY_TIME_S
    assert peak_bytes(process_id) < 300 * _MIB
    assert (await pool.check(job(write_package(tmp_path / "good")))).rank == 4
    assert pool.process_ids == [process_id]


async def test_another_digest_than_the_declared_one_is_refused(pool: AdmissionPool, package: Path) -> None:
    with pytest.raises(DigestMismatchError, match="changed on the way"):
        await pool.check(job(package, expected_digest="0" * 64))


async def test_the_declared_digest_may_have_capitals(pool: AdmissionPool, package: Path) -> None:
    digest = read_package(package).digest

    assert (await pool.check(job(package, expected_digest=digest.upper()))).digest == digest


async def test_an_adapter_of_zeros_has_no_effect_which_takes_no_engine_to_see(
    pool: AdmissionPool, package: Path
) -> None:
    """An engine that is busy with others takes seconds to find it out."""
    bad_packages.rewrite_weights(package, lambda key, w: (key, np.zeros_like(w) if "lora_B" in key else w))

    await pool.check(job(package))  # where nobody asked for an effect
    with pytest.raises(NoEffectError, match="untrained"):
        await pool.check(job(package, must_have_effect=True))


async def test_an_adapter_larger_than_the_arena_is_refused(pool: AdmissionPool, package: Path) -> None:
    with pytest.raises(AdapterTooLargeError, match="adapter_arena_bytes"):
        await pool.check(job(package, max_elements=10))


async def test_a_missing_signature_is_refused_where_one_is_required(
    pool: AdmissionPool, package: Path
) -> None:
    with pytest.raises(SignatureRequiredError, match=r"model\.sig"):
        await pool.check(job(package, signature_policy="require", trust=SignatureTrust()))


@pytest.fixture
def large_package(tmp_path: Path) -> Path:
    """Hundreds of megabytes of zeros that take no place on the disk, and a while to read."""
    folder = write_package(tmp_path / "large")
    num_values = 120 * _MIB
    shapes = {"lora_A": [4, num_values // 4], "lora_B": [num_values // 4, 4]}
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    header = {
        f"{key}.{part}.weight": {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [2 * n * num_values, 2 * (n + 1) * num_values],
        }
        for n, (part, shape) in enumerate(shapes.items())
    }
    raw = raw_safetensors(json.dumps(header).encode(), b"")
    with (folder / WEIGHTS).open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + 4 * num_values)
    return folder


async def test_a_package_that_takes_too_long_is_refused_and_its_process_replaced(
    large_package: Path,
) -> None:
    slow = AdmissionPool(AdmissionBudget(seconds=0.02))
    await slow.start()
    (process_id,) = slow.process_ids

    with pytest.raises(AdapterInvalidError, match=r"more than 0\.02 s"):
        await slow.check(job(large_package))
    await wait_until(lambda: slow.process_ids not in ([], [process_id]))
    await slow.close()

    assert not psutil.pid_exists(process_id)


async def test_a_package_that_takes_too_much_memory_is_refused_and_the_next_one_is_admitted(
    tmp_path: Path, package: Path
) -> None:
    bad_packages.as_many_tensors_as_a_header_holds(write_package(tmp_path / "wide"))
    limits = PackageLimits(max_tensors=100_000)  # else it is refused unread
    small = AdmissionPool(AdmissionBudget(memory_bytes=24 * _MIB, limits=limits))
    await small.start()
    (process_id,) = small.process_ids
    before = peak_bytes(process_id)

    with pytest.raises(AdapterInvalidError, match="memory"):
        await small.check(job(tmp_path / "wide"))
    admitted = await small.check(job(package))
    process_ids = small.process_ids
    await small.close()

    assert before < 100 * _MIB
    assert admitted.rank == 4
    assert process_ids != [process_id]


async def test_a_process_that_dies_refuses_its_package_and_is_replaced(
    pool: AdmissionPool, large_package: Path, package: Path
) -> None:
    (process_id,) = pool.process_ids
    check = asyncio.create_task(pool.check(job(large_package)))
    await asyncio.sleep(0)  # the job is on its way
    os.kill(process_id, signal.SIGKILL)

    with pytest.raises(AdapterInvalidError, match="ended its process"):
        await check

    assert (await pool.check(job(package))).rank == 4


async def test_a_process_that_died_while_it_waited_costs_no_package(
    pool: AdmissionPool, package: Path
) -> None:
    (process_id,) = pool.process_ids
    os.kill(process_id, signal.SIGKILL)
    await wait_until(lambda: pool.process_ids == [])

    assert (await pool.check(job(package))).rank == 4


async def test_a_check_that_is_cancelled_ends_its_process(
    pool: AdmissionPool, large_package: Path, package: Path
) -> None:
    (process_id,) = pool.process_ids
    check = asyncio.create_task(pool.check(job(large_package)))
    await asyncio.sleep(0)  # the job is on its way

    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check

    await wait_until(lambda: not psutil.pid_exists(process_id))
    assert (await pool.check(job(package))).rank == 4


async def test_more_checks_than_processes_wait_in_line(pool: AdmissionPool, tmp_path: Path) -> None:
    folders = [write_package(tmp_path / str(seed), seed=seed) for seed in range(5)]

    admitted = await asyncio.gather(*(pool.check(job(folder)) for folder in folders))

    assert [a.digest for a in admitted] == [read_package(folder).digest for folder in folders]


async def test_checks_that_run_or_wait_when_the_pool_is_closed_say_that_the_server_stops(
    large_package: Path,
) -> None:
    pool = AdmissionPool(AdmissionBudget())
    await pool.start()
    checks = [asyncio.create_task(pool.check(job(large_package))) for _ in range(3)]
    await asyncio.sleep(0)  # the job is on its way
    await pool.close()

    outcomes = await asyncio.gather(*checks, pool.check(job(large_package)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DrainingError] * 4
    assert pool.process_ids == []


async def test_a_process_is_nice_and_knows_none_of_the_servers_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    pool = AdmissionPool(AdmissionBudget())
    await pool.start()
    (process_id,) = pool.process_ids
    process = psutil.Process(process_id)
    environment, niceness = process.environ(), process.nice()
    libraries = {mapped.path for mapped in process.memory_maps()}
    await pool.close()

    assert "very-secret" not in environment.values()
    assert niceness >= 10
    assert not any("torch" in path for path in libraries)


_SERVER = """
import asyncio, sys
from loraplex_server.admission.jobs import AdmissionBudget, encode
from loraplex_server.admission.pool import AdmissionPool

async def main():
    pool = AdmissionPool(AdmissionBudget())
    await pool.start()
    print(*pool.process_ids, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_death_of_the_server_ends_its_processes() -> None:
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    worker = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.wait()
    server.stdout.close()

    worker.wait(timeout=_ANY_TIME_S)


@pytest.mark.parametrize("limits", [PackageLimits(max_bytes=100), PackageLimits(max_tensors=2)])
async def test_the_limits_of_the_budget_hold(limits: PackageLimits, package: Path) -> None:
    pool = AdmissionPool(AdmissionBudget(limits=limits))
    await pool.start()

    with pytest.raises(AdapterInvalidError):
        await pool.check(job(package))
    await pool.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_ANY_TIME_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_process_whose_server_has_died_ends_without_a_word(tmp_path: Path) -> None:
    """It may notice by its pipe before the kernel ends it."""
    command = [sys.executable, "-m", "loraplex_server.admission.worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdin.write(encode(AdmissionBudget()))
        worker.stdin.flush()
        assert worker.stdout.readline() == READY
        worker.stdout.close()
        worker.stdin.write(encode(job(write_package(tmp_path / "sound"))))
        worker.stdin.close()

        assert worker.stderr.read() == b""

from __future__ import annotations

from pathlib import Path

import pytest

from loraplex_server.engine.config import EngineConfig, ResidencySizes
from loraplex_server.engine.prefill_budget import PrefillSpread

GIB = 2**30


def config(**changes: int) -> EngineConfig:
    return EngineConfig(base_path=Path("base"), store_path=Path("data/store"), **changes)  # type: ignore[arg-type]


def sizes(
    *, is_gpu: bool, memory_bytes: int = 64 * GIB, num_cores: int = 16, **changes: int
) -> ResidencySizes:
    return config(**changes).residency_sizes(is_gpu=is_gpu, memory_bytes=memory_bytes, num_cores=num_cores)


def test_residency_suits_the_device_and_the_host_memory() -> None:
    assert sizes(is_gpu=False) == ResidencySizes(GIB, 2**21, 1, 1)
    assert sizes(is_gpu=False, memory_bytes=4 * GIB).host_cache_bytes == GIB // 2
    assert sizes(is_gpu=True) == ResidencySizes(4 * GIB, 2**28, 12, 2)
    assert sizes(is_gpu=True, memory_bytes=8 * GIB).host_cache_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("num_cores", "load_threads", "max_reads"), [(1, 1, 1), (2, 1, 1), (8, 6, 2), (64, 12, 2)]
)
def test_few_cores_read_one_adapter_at_a_time(num_cores: int, load_threads: int, max_reads: int) -> None:
    suited = sizes(is_gpu=True, num_cores=num_cores)

    assert (suited.load_threads, suited.max_reads) == (load_threads, max_reads)


def test_a_cpu_engine_reads_one_adapter_at_a_time_however_many_threads_read_it() -> None:
    assert sizes(is_gpu=False, adapter_load_threads=8).max_reads == 1


def test_what_was_asked_for_is_taken() -> None:
    asked = config(host_cache_bytes=5, adapter_copy_bytes=6, adapter_load_threads=7)

    assert asked.residency_sizes(is_gpu=True, memory_bytes=GIB, num_cores=2) == ResidencySizes(5, 6, 7, 2)


def test_prompts_are_spread_on_a_gpu_unless_told_otherwise() -> None:
    assert config().prefill_spread(is_gpu=True) == PrefillSpread(steps=16, min_rows=8)
    assert config().prefill_spread(is_gpu=False).steps == 1
    for is_gpu in (False, True):
        asked = config(prefill_spread_steps=3, min_prefill_rows=2)
        assert asked.prefill_spread(is_gpu=is_gpu) == PrefillSpread(steps=3, min_rows=2)


@pytest.mark.parametrize(
    "name",
    [
        *("host_cache_bytes", "adapter_copy_bytes", "adapter_load_threads"),
        *("prefill_spread_steps", "min_prefill_rows"),
    ],
)
def test_none_of_them_may_be_0(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        config(**{name: 0})


def test_images_are_beside_the_store() -> None:
    assert config().images_root == Path("data/images")

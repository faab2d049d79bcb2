"""What the emulation of CUDA kernels must find: a kernel that reads what it has not waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.cuda_on_cpu.emulation import COMPILER, EmulatedKernel

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

COPY = """
#include "common.cuh"
extern "C" __global__ void copy(const int* from, int* to) {
    extern __shared__ __align__(128) unsigned char memory[];
    const u32 place = shared_address(memory) + threadIdx.x * 16;
    copy_async(place, from + threadIdx.x * 4);
    commit_copies();
    WAIT
    const u32 read = shared_address(memory) + (threadIdx.x ^ 1) * 16;
    *reinterpret_cast<uint4*>(to + threadIdx.x * 4) = load_shared16(read);
}
"""
BULK = """
#include "common.cuh"
extern "C" __global__ void copy(const int* from, int* to) {
    extern __shared__ __align__(128) unsigned char memory[];
    const u32 barrier = shared_address(memory) + 512;
    if (threadIdx.x == 0) {
        init_barrier(barrier, 1);
        expect_bytes(barrier, 512);
        copy_bulk(shared_address(memory), from, 512, barrier);
    }
    __syncwarp();
    WAIT
    const u32 read = shared_address(memory) + (threadIdx.x ^ 1) * 16;
    *reinterpret_cast<uint4*>(to + threadIdx.x * 4) = load_shared16(read);
}
"""


@pytest.mark.parametrize(
    ("code", "wait", "is_right"),
    [
        (COPY, "wait_for_copies<0>(); __syncwarp();", True),
        (COPY, "wait_for_copies<1>(); __syncwarp();", False),
        (COPY, "__syncwarp();", False),
        (BULK, "wait_barrier(barrier, 0);", True),
        (BULK, "", False),
    ],
)
def test_copies_are_there_when_they_have_been_waited_for(
    code: str, wait: str, is_right: bool, tmp_path: Path
) -> None:
    source, to = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)

    EmulatedKernel(code.replace("WAIT", wait), "copy", {}, 32, tmp_path).launch((1, 1), (source, to))

    swapped = source.view(16, 2, 4).flip(1).reshape(-1)
    assert torch.equal(to, swapped) == is_right


def test_threads_that_wait_for_what_never_comes_are_found(tmp_path: Path) -> None:
    kernel = EmulatedKernel(BULK.replace("WAIT", "wait_barrier(barrier, 1);"), "copy", {}, 32, tmp_path)

    with pytest.raises(RuntimeError, match="wait for one another"):
        kernel.launch((1, 1), (torch.zeros(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)))


WAITING = """
#include "common.cuh"
extern "C" __global__ void waiting(int* to) {
    extern __shared__ __align__(128) unsigned char memory[];
    WAIT
    memory[threadIdx.x] = 1;
    to[threadIdx.x] = memory[threadIdx.x];
}
"""


@pytest.mark.parametrize("wait", ["", "if (threadIdx.x > 0) wait_for_previous_kernel();"])
def test_threads_that_do_not_wait_for_the_previous_kernel_are_found(wait: str, tmp_path: Path) -> None:
    kernel = EmulatedKernel(WAITING.replace("WAIT", wait), "waiting", {}, 32, tmp_path)
    to = torch.zeros(32, dtype=torch.int32)
    kernel.launch((1, 1), (to,))

    with pytest.raises(RuntimeError, match="waits once"):
        kernel.launch((1, 1), (to,), overlap=True)


def test_writing_beyond_the_shared_memory_of_a_launch_is_found(tmp_path: Path) -> None:
    code = WAITING.replace("WAIT", "wait_for_previous_kernel();")
    kernel = EmulatedKernel(code, "waiting", {}, 32, tmp_path)
    to = torch.zeros(32, dtype=torch.int32)
    kernel.launch((1, 1), (to,), overlap=True, shared_bytes=32)

    with pytest.raises(RuntimeError, match="beyond its shared memory"):
        kernel.launch((1, 1), (to,), overlap=True, shared_bytes=31)


def test_writing_where_a_barrier_is_is_found(tmp_path: Path) -> None:
    wait = "wait_barrier(barrier, 0); if (threadIdx.x == 0) store_shared16(PLACE, 0, 0, 0, 0);"
    beside, above = (
        EmulatedKernel(BULK.replace("WAIT", wait.replace("PLACE", place)), "copy", {}, 32, tmp_path)
        for place in ("barrier + 16", "barrier")
    )
    source, to = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    beside.launch((1, 1), (source, to))

    with pytest.raises(RuntimeError, match="where it has a barrier"):
        above.launch((1, 1), (source, to))

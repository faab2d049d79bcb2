"""Pinned buffers are written anew only when the device has read them; a step never waits for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraplex_server.engine import pinned_reads
from loraplex_server.engine.pinned_reads import PinnedReads

CPU = torch.device("cpu")


class FakeBuffer:
    """Is read when the test says so."""

    made: list[FakeBuffer]

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_in_use = False
        self.num_reads = 0
        FakeBuffer.made.append(self)

    def read_into(self, target: Tensor, words: Tensor) -> None:
        assert not self.is_in_use
        self.is_in_use = True
        self.num_reads += 1
        target.copy_(words)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeBuffer]:
    monkeypatch.setattr(pinned_reads, "_Buffer", FakeBuffer)
    FakeBuffer.made = []
    return FakeBuffer.made


def write(reads: PinnedReads, num_words: int) -> None:
    words = torch.arange(num_words, dtype=torch.int32)
    target = torch.zeros_like(words)
    reads.write(words, target)
    assert torch.equal(target, words)


def test_a_buffer_that_was_read_serves_again(made: list[FakeBuffer]) -> None:
    reads = PinnedReads()
    for _ in range(5):
        write(reads, 16)
        made[0].is_in_use = False

    assert [buffer.num_reads for buffer in made] == [5]


def test_while_all_are_in_use_there_is_a_new_one_and_the_oldest_comes_first_again(
    made: list[FakeBuffer],
) -> None:
    reads = PinnedReads()
    for _ in range(3):
        write(reads, 16)
    made[0].is_in_use = False
    write(reads, 32)
    write(reads, 48)

    assert [buffer.num_reads for buffer in made] == [2, 1, 1, 1]


def test_what_is_reserved_suffices_for_all_sizes_up_to_it(made: list[FakeBuffer]) -> None:
    reads = PinnedReads()
    reads.reserve(5000)
    reads.reserve(3000)
    num_reserved = len(made)
    for num_words in (16, 1024, 1040, 4096, 4112, 5008):
        write(reads, num_words)

    assert len(made) == num_reserved
    assert {buffer.size for buffer in made} == {1024, 2048, 4096, 8192}


def test_on_a_cpu_words_stay_where_they_are(made: list[FakeBuffer]) -> None:
    words = torch.arange(5, dtype=torch.int32)

    assert PinnedReads().bring(words, CPU) is words
    assert made == []

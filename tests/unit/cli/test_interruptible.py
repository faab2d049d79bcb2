"""Streams as commands read them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from loraplex_cli.interruptible import interruptible


def test_a_stream_comes_whole_and_in_order() -> None:
    assert list(interruptible(iter(range(5)))) == [0, 1, 2, 3, 4]


def test_a_stream_is_never_read_by_the_thread_that_ctrl_c_interrupts() -> None:
    def readers() -> Iterator[threading.Thread]:
        for _ in range(3):
            yield threading.current_thread()

    found = list(interruptible(readers()))

    assert len(found) == 3
    assert threading.main_thread() not in found


def test_a_stream_is_not_read_ahead_of_who_asks() -> None:
    taken = []

    def counted() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    stream = interruptible(counted())

    assert [next(stream), next(stream)] == [0, 1]
    assert taken == [0, 1]


def test_what_ends_a_stream_ends_it_for_the_reader() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ConnectionError("gone")

    stream = interruptible(broken())

    assert next(stream) == 1
    with pytest.raises(ConnectionError, match="gone"):
        next(stream)

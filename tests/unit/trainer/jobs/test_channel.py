"""A job hears its server, gives way as long as it must and no longer, and says whole lines."""

from __future__ import annotations

import io
import os
import threading
import time
from typing import BinaryIO

import pytest

from loraplex_server.training.messages import (
    CancelOrder,
    Command,
    QueueDepth,
    Said,
    decode_report,
    encode,
)
from loraplex_trainer.jobs.channel import ServerChannel


class Server:
    """The other end."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.commands: BinaryIO = os.fdopen(reader, "rb")
        self._writer = os.fdopen(writer, "wb", buffering=0)
        self.reports = io.BytesIO()
        self.gone = threading.Event()

    def go(self) -> None:
        self._writer.close()

    def say(self, *commands: Command) -> None:
        for command in commands:
            self._writer.write(encode(command))


@pytest.fixture
def server() -> Server:
    """A server that says what the test tells it to."""
    return Server()


def listening(server: Server) -> ServerChannel:
    channel = ServerChannel(server.commands, server.reports)
    channel.listen(server.gone.set)
    return channel


def until(holds: object) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_step_waits_while_the_queue_is_deep_and_goes_on_when_it_is_not(server: Server) -> None:
    channel = listening(server)
    server.say(QueueDepth(3))
    until(lambda: channel._waiting == 3)
    waiting = threading.Thread(target=channel.wait_turn, args=(2, 60))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()

    server.say(QueueDepth(2))
    waiting.join(10)

    assert not waiting.is_alive()
    assert channel.take_pause_s() > 0
    assert channel.take_pause_s() == 0


def test_a_step_does_not_wait_for_ever(server: Server) -> None:
    channel = listening(server)
    server.say(QueueDepth(9))
    until(lambda: channel._waiting == 9)

    channel.wait_turn(0, 0.05)

    assert channel.take_pause_s() >= 0.05


def test_a_cancellation_ends_the_wait(server: Server) -> None:
    channel = listening(server)
    server.say(QueueDepth(9), CancelOrder())
    until(lambda: channel.is_cancelled)

    channel.wait_turn(0, 60)

    assert channel.is_cancelled


def test_what_no_server_says_is_passed_over(server: Server) -> None:
    channel = listening(server)
    server._writer.write(b'{"type": "Tomorrow"}\nnonsense\n')
    server.say(QueueDepth(1))

    until(lambda: channel._waiting == 1)


def test_a_job_notices_that_its_server_is_gone(server: Server) -> None:
    listening(server)

    server.go()

    assert server.gone.wait(10)


def test_reports_of_many_threads_are_whole_lines(server: Server) -> None:
    channel = ServerChannel(server.commands, server.reports)

    def tell() -> None:
        for _ in range(100):
            channel.tell(Said("x" * 500))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = server.reports.getvalue().splitlines()
    assert [decode_report(line) for line in lines] == [Said("x" * 500)] * 400

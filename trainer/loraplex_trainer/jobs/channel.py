"""A job's talk with its server: reports out, the queue's depth and a cancellation in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from loraplex_server.training.messages import (
    CancelOrder,
    Command,
    QueueDepth,
    Report,
    decode_command,
    encode,
)


class ServerChannel:
    """Reports may come from any thread."""

    def __init__(self, commands: BinaryIO, reports: BinaryIO) -> None:
        self._commands = commands
        self._reports = reports
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._waiting = 0
        self._is_cancelled = False
        self._paused_s = 0.0

    def first_command(self) -> Command:
        """What is to be done. Raises msgspec.MsgspecError."""
        return decode_command(self._commands.readline())

    def listen(self, on_gone: Callable[[], None]) -> None:
        """Follow what the server says, in a thread, which calls `on_gone` when there is no server any more."""
        threading.Thread(target=self._listen, args=(on_gone,), name="server", daemon=True).start()

    def tell(self, report: Report) -> None:
        """One line, whole."""
        line = encode(report)
        with self._writing:
            self._reports.write(line)

    @property
    def is_cancelled(self) -> bool:
        """Whether the job shall end at its next step."""
        return self._is_cancelled

    def wait_turn(self, max_waiting: int, max_pause_s: float) -> None:
        """Return when no more than `max_waiting` requests wait, when the job is cancelled, or after `max_pause_s`: a
        server that is always busy slows a training down and does not stop it.
        """
        began_s = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting <= max_waiting or self._is_cancelled, max_pause_s)
        self._paused_s += time.monotonic() - began_s

    def take_pause_s(self) -> float:
        """How long the job gave way since this was last asked."""
        paused_s, self._paused_s = self._paused_s, 0.0
        return paused_s

    def _listen(self, on_gone: Callable[[], None]) -> None:
        for line in self._commands:
            try:
                command = decode_command(line)
            except msgspec.MsgspecError:
                continue  # a newer server's
            with self._changed:
                match command:
                    case QueueDepth(waiting=waiting):
                        self._waiting = waiting
                    case CancelOrder():
                        self._is_cancelled = True
                self._changed.notify_all()
        on_gone()

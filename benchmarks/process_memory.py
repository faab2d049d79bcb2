"""What other processes take, looked at while they work. Linux."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

_EVERY_S = 0.005
_FORGET_PEAK = "5"  # see proc_pid_clear_refs(5)


def resident_bytes(process_id: int, field: str = "VmRSS") -> int:
    """VmRSS, or VmHWM, the largest it has been. Raises OSError where the process has gone."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(process_id)  # it has ended, and nobody has asked for its exit code yet


class AdmissionPeak:
    """The largest resident memory of a server's admission processes within a `with` block, and what it began with."""

    def __init__(self, server_process_id: int) -> None:
        self._server = psutil.Process(server_process_id)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.begin_bytes = 0
        self.peak_bytes = 0

    def __enter__(self) -> AdmissionPeak:
        for process_id in self._processes():
            with suppress(OSError):
                Path(f"/proc/{process_id}/clear_refs").write_text(_FORGET_PEAK)
                self.begin_bytes = max(self.begin_bytes, resident_bytes(process_id))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        """Also of a process that ends meanwhile, and of the one that takes its place."""
        processes = self._processes()
        while not self._over.wait(_EVERY_S):
            try:
                peaks = [resident_bytes(process_id, "VmHWM") for process_id in processes]
            except OSError:
                processes = self._processes()
                continue
            self.peak_bytes = max(self.peak_bytes, *peaks, 0)

    def _processes(self) -> list[int]:
        found = []
        for child in self._server.children():
            with suppress(psutil.NoSuchProcess):
                if "loraplex_server.admission" in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

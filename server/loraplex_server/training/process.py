"""The trainer's processes: started without network and secrets, spoken to by lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil

from loraplex_adapters.errors import StorageError
from loraplex_server.child_process import bare_environment
from loraplex_server.training.messages import Command, Report, decode_report, encode

log = logging.getLogger(__name__)

CHILD_MODULE = "loraplex_trainer.jobs.main"
"""Named, never imported: what trains stands above the server."""
_MAX_LINE_BYTES = 1 << 20
_MAX_OUTPUT_BYTES = 1 << 20  # of each of the two files that are kept
_NICENESS = 10  # requests come first
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # Libraries that ask anyway find nobody.
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}


class TrainerProcess:
    """One process of the trainer. It dies with the server."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path | None) -> None:
        self._process = process
        self._output = asyncio.get_running_loop().create_task(self._keep_output(output))

    @classmethod
    async def start(cls, work_folder: Path, num_threads: int, output: Path | None = None) -> TrainerProcess:
        """`output` is where its standard error is kept; None: nowhere. Raises StorageError."""
        threads = str(num_threads)
        environment = bare_environment("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES") | _OFFLINE
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HOME": str(work_folder)}
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", CHILD_MODULE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
                cwd=work_folder,
                env=environment,
                start_new_session=True,  # an interrupt from the terminal is for the server, which ends its processes
            )
        except OSError as error:
            log.error("no process to train in", extra={"cause": str(error)})
            raise StorageError("the server cannot start a process to train in; try again later") from None
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process(process.pid).nice(_NICENESS)
        return cls(process, output)

    @property
    def process_id(self) -> int:
        """Of the process, though it may be gone."""
        return self._process.pid

    def resident_bytes(self) -> int:
        """Memory of the process and its children; 0 once it is gone. Blocks for a moment."""
        total = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process_id)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += int(one.memory_info().rss)
        return total

    async def send(self, command: Command) -> None:
        """A process that is gone is not told."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(encode(command))
            await self._process.stdin.drain()

    async def reports(self) -> AsyncIterator[Report]:
        """What it says, until it ends. What is no report is left out."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than any report
                continue
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_report(line)
            except msgspec.MsgspecError:
                log.warning("a training process said something that is no report")

    def kill(self) -> None:
        """It and what it has started; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Until it is gone. The exit code, negative for a signal."""
        returncode = await self._process.wait()
        await self._output
        return returncode

    async def _keep_output(self, file: Path | None) -> None:
        """Two files of bounded size: when the newer one is full, it takes the older one's place."""
        assert self._process.stderr is not None
        written = 0
        while chunk := await self._process.stderr.read(1 << 16):
            if file is None:
                continue
            with contextlib.suppress(OSError):
                written = await asyncio.to_thread(_append, file, chunk, written)


def _append(file: Path, chunk: bytes, written: int) -> int:
    if written + len(chunk) > _MAX_OUTPUT_BYTES:
        os.replace(file, file.with_name(file.name + ".1"))
        written = 0
    with file.open("ab" if written else "wb") as output:
        output.write(chunk)
    return written + len(chunk)

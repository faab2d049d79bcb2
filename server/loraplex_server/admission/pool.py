"""Checks packages in processes of their own, so that no package can harm or delay the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import msgspec

from loraplex_adapters.errors import (
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterTooLargeError,
    DigestMismatchError,
    LoraplexError,
    NoEffectError,
    NonFiniteWeightsError,
    SignatureError,
    SignatureRequiredError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
)
from loraplex_server.admission.jobs import (
    AdmissionBudget,
    AdmissionJob,
    AdmittedPackage,
    Answer,
    Refusal,
    decode_answer,
    encode,
)
from loraplex_server.admission.worker import READY
from loraplex_server.child_process import bare_environment
from loraplex_server.errors import DrainingError

log = logging.getLogger(__name__)

_WORKER_MODULE = "loraplex_server.admission.worker"
_START_TIMEOUT_S = 60.0
_MAX_JOBS = (
    100  # of one process: what its libraries leak, and the memory a large package leaves in pieces, ends
)
_MAX_ANSWER_BYTES = 1 << 20
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_ERRORS: dict[str, type[LoraplexError]] = {
    error.__name__: error
    for error in (
        AdapterIncompatibleError,
        AdapterInvalidError,
        AdapterTooLargeError,
        DigestMismatchError,
        NoEffectError,
        NonFiniteWeightsError,
        SignatureError,
        SignatureRequiredError,
        StorageError,
        UnsupportedFormatError,
        UnsupportedPeftFeatureError,
    )
}


class AdmissionPool:
    """Owns the processes that check packages. Lives in one event loop; checks beyond their number wait in line."""

    def __init__(
        self, budget: AdmissionBudget, num_workers: int = 1, *, checks_signatures: bool = False
    ) -> None:
        """`checks_signatures` lets the processes load what signatures take when they start."""
        self._workers = [_Worker(budget, checks_signatures) for _ in range(num_workers)]
        self._free: asyncio.Queue[_Worker] = asyncio.Queue()
        self._renewals: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that run now."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def start(self) -> None:
        """Start all processes, so that the first package need not wait for one. Raises StorageError."""
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            self._free.put_nowait(worker)

    async def close(self) -> None:
        """End all processes, whatever they do. Checks that run or wait are refused with DrainingError."""
        self._is_closed = True
        for renewal in self._renewals:
            renewal.cancel()
        await asyncio.gather(*self._renewals, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def check(self, job: AdmissionJob) -> AdmittedPackage:
        """Prove a package; see `validation.validate` for what that is, and for the errors.

        A package whose check passes the budget of time or memory, or ends its process, is an AdapterInvalidError.
        Cancelling this ends the process that is at it.
        """
        worker = await self._free.get()
        try:
            self._check_open()
            answer = await worker.run(job)
        except (AdapterInvalidError, StorageError):
            self._check_open()  # closing is what ended the process
            raise
        finally:
            self._give_back(worker)
        if isinstance(answer, Refusal):
            raise _error_of(answer)
        if answer.package.warning:
            log.warning(
                "a package's signature is not in order",
                extra={"digest": answer.package.digest[:12], "cause": answer.package.warning},
            )
        return answer.package

    def _check_open(self) -> None:
        if self._is_closed:
            raise DrainingError("the server is stopping; register the adapter again later")

    def _give_back(self, worker: _Worker) -> None:
        """A process that may not go on is replaced before the next package needs it."""
        if worker.may_go_on or self._is_closed:
            self._free.put_nowait(worker)
            return
        renewal = asyncio.get_running_loop().create_task(self._renew(worker))
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewals.discard)

    async def _renew(self, worker: _Worker) -> None:
        try:
            await worker.stop()
            with contextlib.suppress(StorageError):  # logged; the next package tries again
                await worker.start()
        finally:
            self._free.put_nowait(worker)


def _error_of(refusal: Refusal) -> LoraplexError:
    kind = _ERRORS.get(refusal.error, AdapterInvalidError)
    if issubclass(kind, AdapterInvalidError):
        return kind(refusal.message, refusal.field)
    return kind(refusal.message)


class _Worker:
    """One process, or none at the moment."""

    def __init__(self, budget: AdmissionBudget, checks_signatures: bool) -> None:
        self._budget = budget
        self._arguments = ["preload"] if checks_signatures else []
        self._process: asyncio.subprocess.Process | None = None
        self._num_jobs = 0
        self._is_in_order = False

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def may_go_on(self) -> bool:
        return self.process_id is not None and self._is_in_order and self._num_jobs < _MAX_JOBS

    async def start(self) -> None:
        """Raises StorageError where the machine gives no process."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                # -P: the working folder is no place to import from.
                *(sys.executable, "-P", "-m", _WORKER_MODULE, *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_ANSWER_BYTES,
                env=bare_environment() | _ONE_THREAD,
                start_new_session=True,  # an interrupt from the terminal is for the server, which ends its processes
            )
            async with asyncio.timeout(_START_TIMEOUT_S):
                is_ready = await self._exchange(encode(self._budget)) == READY
        except (OSError, TimeoutError) as error:
            log.error("no process to check packages", extra={"cause": str(error) or type(error).__name__})
            is_ready = False
        if not is_ready:
            await self.stop()
            raise StorageError("the server cannot start a process to check packages; try again later")
        self._num_jobs = 0
        self._is_in_order = True

    async def stop(self) -> None:
        """Kill the process and wait until it is gone."""
        self._is_in_order = False
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def run(self, job: AdmissionJob) -> Answer:
        """Raises AdapterInvalidError where the process does not answer in time or dies."""
        if self.process_id is None:
            await self.start()
        self._num_jobs += 1
        is_spent, self._is_in_order = True, False  # until it has answered
        budget = self._budget
        try:
            async with asyncio.timeout(budget.seconds):
                answer = decode_answer(await self._exchange(encode(job)))
            is_spent = isinstance(answer, Refusal) and answer.is_worker_spent
        except TimeoutError:
            raise AdapterInvalidError(
                f"checking the package takes more than {budget.seconds:g} s, its budget"
            ) from None
        except (msgspec.MsgspecError, ValueError, ConnectionError):
            raise AdapterInvalidError(
                "checking the package ended its process; a package of more than its budget of "
                f"{budget.memory_bytes} bytes of memory can do that"
            ) from None
        self._is_in_order = not is_spent
        return answer

    async def _exchange(self, line: bytes) -> bytes:
        """The line that answers `line`; what there is of it where the process died."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()
        return await self._process.stdout.readline()

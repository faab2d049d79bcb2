"""The front end's side of the engine process: spawn it, talk to it, bring it back when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.entry import run_engine_process
from loraplex_server.engine.messages import (
    AbortSequences,
    AddSequence,
    Command,
    EngineFailed,
    EngineMessage,
    EngineProgress,
    EngineReady,
    EngineStats,
    ForgetAdapter,
    PinAdapters,
    Shutdown,
    StepOutputs,
    TokenOutput,
    WarmAdapter,
)
from loraplex_server.engine_failures import start_error
from loraplex_server.errors import DrainingError, EngineRestartedError, EngineUnavailableError
from loraplex_server.socket_folder import socket_folder

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 30.0
_STABLE_AFTER_S = 30.0  # an engine that lived this long starts the backoff anew
_SHUTDOWN_TIMEOUT_S = 5.0


OnProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while an engine starts; the stages are those of EngineProgress."""


class EngineState(enum.Enum):
    """What the engine process is doing."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"  # could not start; tried again after a pause
    STOPPED = "stopped"


class RestartBackoff:
    """Pauses between one engine's end and the start of the next: longer each time, until one has proved stable."""

    def __init__(self) -> None:
        self._next_s = _FIRST_BACKOFF_S

    def pause_s(self, lived_s: float) -> float:
        """Seconds to wait after an engine that lived `lived_s` seconds."""
        if lived_s > _STABLE_AFTER_S:
            self._next_s = _FIRST_BACKOFF_S
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, _MAX_BACKOFF_S)
        return pause_s


class SequenceStream:
    """Outputs of one sequence, in order. Tokens that arrive faster than they are read come together.

    Read by one task, written by the event loop's callbacks.
    """

    def __init__(self) -> None:
        self._outputs: list[TokenOutput] = []
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None  # of the task that waits in `take`

    def push(self, output: TokenOutput) -> None:
        self._outputs.append(output)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream behind what has arrived; the first failure counts."""
        if self._error is None:
            self._error = error
        self._wake()

    async def take(self) -> list[TokenOutput]:
        """All outputs that have arrived, at least one. Raises what ended the stream early."""
        if not self._outputs and self._error is None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            return outputs
        assert self._error is not None, "woken without an output"
        raise self._error

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class EngineClient:
    """Owns the engine process and the streams of its sequences. Lives in one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        on_state: Callable[[EngineState], None],
        on_stats: Callable[[EngineStats], None],
        on_progress: OnProgress | None = None,
    ) -> None:
        """`on_state` is told of every change, `on_stats` once per engine step; all must return at once."""
        self._config = config
        self._on_state = on_state
        self._on_stats = on_stats
        self._on_progress = on_progress
        self._streams: dict[int, SequenceStream] = {}
        self._ids = itertools.count(1)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)
        self._commands: zmq.Socket[bytes] | None = None
        self._process: BaseProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first_outcome: asyncio.Future[EngineReady] | None = None
        self.state = EngineState.STARTING
        self.ready: EngineReady | None = None
        self.stats = EngineStats()
        self.failure: EngineFailed | None = None

    @property
    def num_streams(self) -> int:
        """Sequences that wait or run."""
        return len(self._streams)

    @property
    def process_id(self) -> int | None:
        """Of the living engine process, if any."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    async def start(self) -> EngineReady:
        """Spawn the engine and wait until it is ready.

        Raises EngineUnavailableError or InsufficientMemoryError if its first start fails.
        """
        self._first_outcome = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        return await self._first_outcome

    async def stop(self) -> None:
        """End every stream that is left, then the engine process. There is no other one afterwards."""
        self._set_state(EngineState.STOPPED)
        self._fail_streams(
            DrainingError(
                "the server stopped before this request ended; send it to another one or again later"
            )
        )
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    def submit(self, command: AddSequence) -> tuple[int, SequenceStream]:
        """Send a sequence under an id of its own, which is returned; that of `command` does not count.

        Raises EngineUnavailableError while there is no engine.
        """
        if self.state is not EngineState.READY:
            raise EngineUnavailableError("the engine is starting or restarting; try again in a moment")
        sequence_id = next(self._ids)
        stream = self._streams[sequence_id] = SequenceStream()
        self._send(msgspec.structs.replace(command, sequence_id=sequence_id))
        return sequence_id, stream

    def finish(self, sequence_id: int, *, abort: bool) -> None:
        """Forget a stream; `abort` also ends its sequence in the engine, at once."""
        if self._streams.pop(sequence_id, None) is not None and abort and self.state is EngineState.READY:
            self._send(AbortSequences([sequence_id]))

    def forget_adapter(self, digest: str) -> None:
        """Tell the engine that no new sequence will name this digest."""
        if self.state is EngineState.READY:
            self._send(ForgetAdapter(digest))

    def pin_adapters(self, digests: list[str]) -> None:
        """Keep exactly these resident from now on. A new engine must be told again."""
        if self.state is EngineState.READY:
            self._send(PinAdapters(digests))

    def warm_adapter(self, digest: str) -> None:
        """Bring an adapter into a slot. Raises EngineUnavailableError while there is no engine."""
        if self.state is not EngineState.READY:
            raise EngineUnavailableError("the engine is starting or restarting; try again in a moment")
        self._send(WarmAdapter(digest))

    def _send(self, command: Command) -> None:
        assert self._commands is not None
        # The send buffer has no bound; what is in it is bounded by admission. It refuses only when nobody listens any
        # more: the engine has just died, and its sequences are about to be failed.
        with contextlib.suppress(zmq.Again):
            self._commands.send(self._encoder.encode(command), zmq.NOBLOCK)

    async def _supervise(self) -> None:
        """Run one engine after another until cancelled."""
        backoff = RestartBackoff()
        while True:
            started_s = time.monotonic()
            self._set_state(EngineState.STARTING)
            await self._run_once()
            self._set_state(EngineState.FAILED)
            self._fail_streams(
                EngineRestartedError("the engine stopped while this request ran; send it again")
            )
            assert self._first_outcome is not None
            if not self._first_outcome.done():
                self._first_outcome.set_exception(start_error(self.failure))
                return
            pause_s = backoff.pause_s(time.monotonic() - started_s)
            log.error("engine stopped; restarting", extra={"backoff_seconds": pause_s})
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> None:
        """One engine process from spawn to death; its messages are handled meanwhile."""
        self.ready = None
        with socket_folder() as folder:
            await self._run_in(folder)

    async def _run_in(self, folder: Path) -> None:
        """As `_run_once`, with the sockets in `folder`."""
        context = zmq.Context()
        self._commands = commands = context.socket(zmq.PUSH)
        messages = zmq.asyncio.Context.shadow(context).socket(zmq.PULL)
        try:
            commands.setsockopt(zmq.SNDHWM, 0)
            messages.setsockopt(zmq.RCVHWM, 0)
            command_address, message_address = f"ipc://{folder}/commands", f"ipc://{folder}/messages"
            commands.bind(command_address)
            messages.bind(message_address)
            spawning = asyncio.ensure_future(
                asyncio.to_thread(_spawn, self._config, command_address, message_address)
            )
            try:
                self._process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                self._process = await spawning  # it cannot be stopped; what it makes must be ended
                raise
            reader = asyncio.create_task(self._read(messages), name="engine-reader")
            try:
                await _wait_for_exit(self._process)
                await asyncio.sleep(0)  # let the reader take what was already delivered
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
        finally:
            await self._end_process()
            # Each by itself: a context waits for ever for sockets that its shadow made.
            commands.close(linger=0)
            messages.close(linger=0)
            context.term()

    async def _end_process(self) -> None:
        """Ask the process to leave, then make it; one that still loads cannot be asked."""
        process = self._process
        if process is None:
            return
        if self.ready is not None and process.is_alive():
            self._send(Shutdown())
            await asyncio.to_thread(process.join, _SHUTDOWN_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)

    async def _read(self, messages: zmq.asyncio.Socket) -> None:
        while True:
            match self._decoder.decode(await messages.recv()):
                case StepOutputs(outputs=outputs, stats=stats):
                    for output in outputs:
                        stream = self._streams.get(output.sequence_id)
                        if stream is not None:  # else its caller has gone
                            stream.push(output)
                    self.stats = stats
                    self._on_stats(stats)
                case EngineProgress(stage=stage, done=done, total=total):
                    if self._on_progress is not None:
                        self._on_progress(stage, done, total)
                case EngineReady() as ready:
                    self.ready = ready
                    self.failure = None
                    if ready.memory_plan:
                        log.info("memory: %s", ready.memory_plan)
                    self._set_state(EngineState.READY)
                    if self._first_outcome is not None and not self._first_outcome.done():
                        self._first_outcome.set_result(ready)
                case EngineFailed() as failure:
                    self.failure = failure
                    log.error(
                        "engine could not start", extra={"reason": failure.reason, "cause": failure.message}
                    )

    def _set_state(self, state: EngineState) -> None:
        if self.state is EngineState.STOPPED:  # a last message of the engine changes nothing
            return
        self.state = state
        if state is not EngineState.READY:
            self.stats = EngineStats()
        self._on_state(state)

    def _fail_streams(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.fail(error)


def _spawn(config: EngineConfig, command_address: str, message_address: str) -> BaseProcess:
    """Start the engine process. Spawned, never forked: gRPC's threads do not survive a fork."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    process = multiprocessing.get_context("spawn").Process(
        target=run_engine_process,
        args=(config, command_address, message_address),
        name="loraplex-engine",
        daemon=True,
    )
    process.start()
    return process


async def _wait_for_exit(process: BaseProcess) -> None:
    """Until the process is gone, without a thread that blocks."""
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    loop.add_reader(process.sentinel, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(process.sentinel)

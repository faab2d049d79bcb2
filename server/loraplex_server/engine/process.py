"""The engine's own process: commands in, one message per step out, over two local sockets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import msgspec
import zmq

from loraplex_adapters.errors import LoraplexError
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.messages import (
    AbortSequences,
    AddSequence,
    Command,
    EngineFailed,
    EngineMessage,
    EngineProgress,
    ForgetAdapter,
    PinAdapters,
    Shutdown,
    StepOutputs,
    TokenOutput,
    WarmAdapter,
)

log = logging.getLogger(__name__)

MessageSender = Callable[[EngineMessage], None]

_ADAPTER_POLL_MS = 1  # how often an idle engine looks whether an adapter has arrived
_SWITCH_INTERVAL_S = 0.0005  # how long another thread may keep the interpreter from a step


def run_engine(config: EngineConfig, command_address: str, message_address: str) -> None:
    """Entry of the spawned process. Returns when it is told to shut down."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    context = zmq.Context()
    commands = context.socket(zmq.PULL)
    messages = context.socket(zmq.PUSH)
    for socket in (commands, messages):
        socket.setsockopt(zmq.RCVHWM if socket is commands else zmq.SNDHWM, 0)
    messages.setsockopt(zmq.LINGER, 1000)
    commands.connect(command_address)
    messages.connect(message_address)
    encoder = msgspec.msgpack.Encoder()

    def send(message: EngineMessage) -> None:
        messages.send(encoder.encode(message))

    def report(stage: str, done: int, total: int) -> None:
        send(EngineProgress(stage, done, total))

    try:
        engine = Engine(config, report)
    except (LoraplexError, ValueError, OSError, RuntimeError) as error:
        reason = "ENGINE_START_FAILED"
        if isinstance(error, LoraplexError):
            reason = error.reason  # its message says it all
        else:
            log.exception("engine could not start")
        send(EngineFailed(message=str(error), reason=reason))
        context.destroy(linger=1000)
        raise SystemExit(1) from None
    send(engine.ready)
    EngineLoop(engine, commands, send).run()
    engine.close()
    context.destroy(linger=1000)


class EngineLoop:
    """Takes all commands that wait, runs a step, sends what it gave; sleeps on the socket when there is no work."""

    def __init__(self, engine: Engine, commands: zmq.Socket[bytes], send: MessageSender) -> None:
        self._engine = engine
        self._commands = commands
        self._send = send
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._running = True
        self._has_news = False  # the state changed, and no step has told it yet

    def run(self) -> None:
        """Until a Shutdown arrives."""
        while self._running:
            outputs = self._take_commands()
            if outputs or self._has_news:
                self._send(StepOutputs(outputs, self._engine.stats()))
                self._has_news = False
            has_work = self._engine.has_work() or self._engine.is_loading
            result = self._engine.step() if has_work else None
            if result is not None:
                self._send(result)
            elif self._running and not self._engine.has_step_in_flight:
                self._commands.poll(_ADAPTER_POLL_MS if self._engine.is_loading else None)

    def _take_commands(self) -> list[TokenOutput]:
        """Carry out every command that waits; returns the outputs of aborted sequences."""
        outputs: list[TokenOutput] = []
        while self._running:
            try:
                payload = self._commands.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            match self._decoder.decode(payload):
                case AddSequence() as command:
                    self._engine.add(command)
                case AbortSequences(sequence_ids=ids):
                    outputs += self._engine.abort(ids)
                case ForgetAdapter(digest=digest):
                    self._engine.forget_adapter(digest)
                    self._has_news = True
                case PinAdapters(digests=digests):
                    self._engine.pin_adapters(digests)
                    self._has_news = True
                case WarmAdapter(digest=digest):
                    self._engine.warm_adapter(digest)
                    self._has_news = True
                case Shutdown():
                    self._running = False
        return outputs

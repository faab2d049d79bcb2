"""A sequence whose answer no caller sees: of golden prompts, of shadows."""

from __future__ import annotations

from loraplex_server.engine.messages import AddSequence, TokenOutput
from loraplex_server.engine_client import EngineClient
from loraplex_server.engine_failures import raise_failure


async def run_unseen(engine: EngineClient, command: AddSequence) -> list[TokenOutput]:
    """All outputs of a sequence, once it has ended; cancelled, it ends in the engine at once.

    Raises EngineError, AdapterUnavailableError, AdapterTooLargeError, ContextOverflowError.
    """
    sequence_id, stream = engine.submit(command)
    outputs: list[TokenOutput] = []
    is_ended = False
    try:
        while not is_ended:
            for output in await stream.take():
                is_ended = output.finish_reason is not None
                raise_failure(output)
                outputs.append(output)
    finally:
        engine.finish(sequence_id, abort=not is_ended)
    return outputs

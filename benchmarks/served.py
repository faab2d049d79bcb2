"""The real server in its own process, asked by the real client in another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from benchmarks.subject import Facts
from benchmarks.workload import Row, Run, Work
from loraplex_client import AsyncLoraplexClient, Delta, Finished

SERVER_ARGUMENTS = ("--quantization", "int8", "--device", "cpu", "--no-prefix-cache")
"""Of `loraplex serve`. Without a prefix cache, so that a round does not answer the next one's prompts."""


class ClientSubject:
    """Streams every row of a work at once, over one connection. Implements `benchmarks.subject.Subject`."""

    def __init__(self, target: str, packages: Mapping[str, Path]) -> None:
        """`target`: host:port of a server that is ready; the packages are registered there under their names."""
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_connect(target, packages))

    def facts(self) -> Facts:
        return {"grpcio": version("grpcio")}

    def run(self, work: Work) -> Run:
        started_s = time.perf_counter()
        num_tokens = self._runner.run(self._stream_all(work))
        return Run(time.perf_counter() - started_s, num_tokens)

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _stream_all(self, work: Work) -> int:
        return sum(await asyncio.gather(*(self._stream(row, work.num_tokens) for row in work.rows)))

    async def _stream(self, row: Row, num_tokens: int) -> int:
        """Tokens received. Raises RuntimeError if they are not all that were asked for."""
        received = 0
        is_finished = False
        stream = self._client.stream(
            row.prompt.text, adapter=row.adapter, temperature=0.0, max_tokens=num_tokens, ignore_eos=True
        )
        async for event in stream:
            if isinstance(event, Delta):
                received += event.token_count
            elif isinstance(event, Finished):
                is_finished = event.usage.prompt_tokens == len(row.prompt.token_ids)
        if not is_finished or received != num_tokens:
            raise RuntimeError(
                f"a stream brought {received} of {num_tokens} tokens, or another prompt was read"
            )
        return received


async def _connect(target: str, packages: Mapping[str, Path]) -> AsyncLoraplexClient:
    client = AsyncLoraplexClient(target)
    await client.wait_until_ready()
    for name, package in packages.items():
        await client.adapters.upload(name, package)
    return client

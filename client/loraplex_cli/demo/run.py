"""The demonstration: one server, three adapters, their answers, a mixed burst."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from loraplex_cli.demo.batch_metrics import means_between, read_batch_totals
from loraplex_cli.demo.burst import MAX_TOKENS, mixed_questions, run_burst
from loraplex_cli.demo.questions import Domain, messages
from loraplex_cli.demo.report import Answer, DemoReport
from loraplex_cli.demo.server_process import ServerAddress, running_server
from loraplex_cli.progress import counting_bar, spinner, stage_bars
from loraplex_client import AsyncLoraplexClient
from loraplex_trainer.judge.graders import grade

Note = Callable[[str], None]


def run_demo(domains: Sequence[Domain], base: str | None, num_streams: int, note: Note) -> DemoReport:
    """Raises CommandError if the server does not start, LoraplexApiError if a single answer cannot be had."""
    _fetch_base(base)
    with ExitStack() as stack:
        with spinner("loading the base model"):
            address = stack.enter_context(running_server(["--base", base] if base else []))
        return asyncio.run(_demonstrate(address, domains, num_streams, note))


def _fetch_base(base: str | None) -> None:
    """Here rather than in the child, whose progress would be hidden."""
    from loraplex_server.base.resolve import resolve_base

    with stage_bars() as progress:
        resolve_base(base, progress)


async def _demonstrate(
    address: ServerAddress, domains: Sequence[Domain], num_streams: int, note: Note
) -> DemoReport:
    async with AsyncLoraplexClient(address.target) as client:
        await client.wait_until_ready()
        info = await client.server_info()
        note(
            f"serving {info.base_model.id} ({info.base_model.quantization} on {info.base_model.device}) "
            f"at {address.target}"
        )
        for domain in domains:
            adapter = await client.adapters.upload(domain.name, domain.package)
            note(f"registered {adapter.name}: rank {adapter.rank}, {adapter.size_bytes / 2**20:.1f} MiB")
        with counting_bar("asking base and adapters", len(domains)) as advance:
            answers = [await _answer(client, domain, advance) for domain in domains]
        before = await asyncio.to_thread(read_batch_totals, address.metrics_url)
        with counting_bar(f"{num_streams} mixed streams", num_streams) as advance:
            burst = await run_burst(client, mixed_questions(domains, num_streams), advance)
        # Read before the load is gone: what is resident then is what serving takes.
        info = await client.server_info()
        after = await asyncio.to_thread(read_batch_totals, address.metrics_url)
    return DemoReport(info, tuple(answers), burst, means_between(before, after))


async def _answer(client: AsyncLoraplexClient, domain: Domain, on_answered: Callable[[], None]) -> Answer:
    row = domain.questions[0]
    base, adapted = await asyncio.gather(
        *(
            client.generate(messages=messages(row), adapter=name, temperature=0.0, max_tokens=MAX_TOKENS)
            for name in ("", domain.name)
        )
    )
    on_answered()
    return Answer(domain.name, row, base.text.strip(), adapted.text.strip(), grade(row, adapted.text))

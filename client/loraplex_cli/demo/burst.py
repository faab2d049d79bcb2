"""The mixed burst: many streams at once, each measured on the client's clock."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from loraplex_cli.demo.questions import Domain, messages
from loraplex_client import AsyncLoraplexClient, Delta, Finished, LoraplexApiError
from loraplex_trainer.judge.graders import EvalRow, grade

MAX_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Question:
    """One stream of the burst."""

    adapter: str  # empty: the base
    row: EvalRow


@dataclass(slots=True)
class StreamRecord:
    """What one stream did. Times in seconds."""

    question: Question
    text: str = ""
    num_tokens: int = 0
    first_text_s: float | None = None  # since the request was sent
    token_gaps_s: list[float] = field(default_factory=list)  # between tokens, deltas of several split evenly
    failure: str = ""  # empty: it finished

    @property
    def is_right(self) -> bool:
        return not self.failure and grade(self.question.row, self.text)


@dataclass(frozen=True, slots=True)
class Burst:
    """All streams of a burst."""

    records: tuple[StreamRecord, ...]
    seconds: float  # from the first request until the last token

    @property
    def tokens_per_second(self) -> float:
        return sum(record.num_tokens for record in self.records) / self.seconds

    @property
    def first_text_s(self) -> list[float]:
        return [record.first_text_s for record in self.records if record.first_text_s is not None]

    @property
    def token_gaps_s(self) -> list[float]:
        return [gap for record in self.records for gap in record.token_gaps_s]


def mixed_questions(domains: Sequence[Domain], count: int) -> list[Question]:
    """Round-robin over the adapters and the base; each domain's questions spread over its list.

    The base gets the domains' questions in turn.
    """
    adapters = ["" if domain is None else domain.name for domain in (*domains, None)]
    per_source = math.ceil(count / len(adapters))
    rows = {domain.name: iter(_spread(domain.questions, 2 * per_source)) for domain in domains}
    base_domains = cycle(domain.name for domain in domains)
    return [
        Question(adapter, next(rows[adapter or next(base_domains)]))
        for adapter, _ in zip(cycle(adapters), range(count), strict=False)
    ]


async def run_burst(
    client: AsyncLoraplexClient, questions: Sequence[Question], on_ended: Callable[[], None]
) -> Burst:
    """Send every question at once; `on_ended` is called as each ends. A stream that fails says so in its record."""

    async def run(question: Question) -> StreamRecord:
        record = await _run_stream(client, question)
        on_ended()
        return record

    started_s = time.perf_counter()
    records = await asyncio.gather(*map(run, questions))
    return Burst(tuple(records), time.perf_counter() - started_s)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


async def _run_stream(client: AsyncLoraplexClient, question: Question) -> StreamRecord:
    record = StreamRecord(question)
    stream = client.stream(
        messages=messages(question.row), adapter=question.adapter, temperature=0.0, max_tokens=MAX_TOKENS
    )
    finished = False
    sent_s = time.perf_counter()
    last_token_s: float | None = None
    try:
        async for event in stream:
            now_s = time.perf_counter()
            if isinstance(event, Delta):
                record.text += event.text
                if event.text and record.first_text_s is None:
                    record.first_text_s = now_s - sent_s
                if last_token_s is not None and event.token_count:
                    gap_s = (now_s - last_token_s) / event.token_count
                    record.token_gaps_s += [gap_s] * event.token_count
                last_token_s = now_s if event.token_count else last_token_s
            elif isinstance(event, Finished):
                record.num_tokens = event.usage.completion_tokens
                finished = True
    except LoraplexApiError as error:
        record.failure = f"{error.reason or error.code.name}: {error.message}"
        return record
    if not finished:
        record.failure = "the stream ended without its last event"
    return record


def _spread(rows: Sequence[EvalRow], count: int) -> list[EvalRow]:
    """`count` rows at even distances, from the start again once they run out."""
    step = max(1, len(rows) // count)
    return [rows[index * step % len(rows)] for index in range(count)]

"""Whatever comes, when, and whoever leaves early: the right tokens, one end each, and nothing left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex_server.engine.messages import FinishReason
from tests.integration.engine.conftest import COMPLETION_TOKENS, PROMPT_LENGTHS, Case
from tests.integration.engine.run import Completion, EngineRun
from tests.integration.engine.world import World, start_engine

MAX_STEPS = 40
LONGEST = max(PROMPT_LENGTHS) + COMPLETION_TOKENS


@dataclass(frozen=True)
class Request:
    """One request of a workload."""

    case_index: int  # modulo the number of cases
    is_damaged: bool  # it names an adapter whose package is damaged
    num_tokens: int
    arrival_step: int
    abort_step: int | None


REQUESTS = st.lists(
    st.builds(
        Request,
        case_index=st.integers(0, 60),
        is_damaged=st.sampled_from([False] * 9 + [True]),
        num_tokens=st.integers(1, COMPLETION_TOKENS),
        arrival_step=st.integers(0, MAX_STEPS // 2),
        abort_step=st.none() | st.integers(0, MAX_STEPS),
    ),
    min_size=1,
    max_size=14,
)


@st.composite
def engine_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Engines so small that sequences wait, are cut into chunks, preempted, and adapters evicted."""
    block_size = draw(st.sampled_from([2, 4, 16]))
    max_running = draw(st.integers(1, 6))
    return {
        "block_size": block_size,
        "num_blocks": -(-(LONGEST + draw(st.integers(0, 80))) // block_size),
        "max_running": max_running,
        "max_batched_tokens": max_running + draw(st.integers(0, 30)),
        "adapter_slots": draw(st.integers(1, 3)),
        "prefix_cache": draw(st.booleans()),
        "prefill_spread_steps": draw(st.sampled_from([None, 2, 16])),
        "min_prefill_rows": draw(st.integers(1, 8)),
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS, changes=engine_settings())
def test_every_request_of_a_random_workload_gets_its_tokens_and_leaves_nothing(
    world: World, cases: list[Case], requests: list[Request], changes: dict[str, Any]
) -> None:
    with EngineRun(start_engine(world, **changes)) as run:
        admitted = play(run, world, cases, requests)

        run.finish()

        for request, completion in zip(admitted, run.completions, strict=True):
            check(request, cases[request.case_index % len(cases)], completion)
        run.assert_nothing_is_left(*world.digests.values())


def play(run: EngineRun, world: World, cases: list[Case], requests: list[Request]) -> list[Request]:
    """Let requests come and go at their steps; returns them by sequence id."""
    admitted: list[Request] = []
    for step in range(MAX_STEPS + 1):
        for request in requests:
            if request.arrival_step == step:
                case = cases[request.case_index % len(cases)]
                digest = world.damaged["changed"] if request.is_damaged else world.digest(case.adapter)
                run.add(case.prompt, digest, max_tokens=request.num_tokens)
                admitted.append(request)
        run.abort(*(i for i, request in enumerate(admitted) if request.abort_step == step))
        run.step()
    return admitted


def check(request: Request, case: Case, completion: Completion) -> None:
    """Exactly one end, which the engine run has seen to, and the one that is right."""
    expected = case.expected[: request.num_tokens]
    match completion.finish_reason:
        case FinishReason.LENGTH:
            assert not request.is_damaged
            assert completion.tokens == expected
        case FinishReason.ABORT:
            assert request.abort_step is not None
            assert completion.tokens == expected[: len(completion.tokens)]
        case FinishReason.ERROR:
            assert request.is_damaged
            assert completion.tokens == []
        case reason:
            raise AssertionError(f"{reason} is no end that this request can have")

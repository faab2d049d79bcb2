"""From a plan to the texts that are sent."""

from __future__ import annotations

from zlib import crc32

from loraplex_loadtest.targets.target import Inspector, Question
from loraplex_loadtest.workload.plan import IntendedRequest, Plan
from loraplex_loadtest.workload.prompts import PromptWriter, load_tokenizer

_PROBE_TOKENS = 16


async def write_questions(plan: Plan, inspector: Inspector) -> tuple[list[Question], bool]:
    """A question for each request, and whether all prompts have exactly the tokens that the plan says.

    What the server's template adds is asked of it once, and taken off every text.
    """
    tokenizer = load_tokenizer(plan.scenario.tokenizer) if plan.scenario.tokenizer else None
    bare = PromptWriter(tokenizer)
    writers: dict[bool, PromptWriter] = {}
    for is_chat in sorted({traffic.prompt.form == "chat" for traffic in plan.scenario.traffic}):
        overhead = 0
        if tokenizer is not None:
            overhead = await inspector.overhead_tokens(is_chat, bare.text(_PROBE_TOKENS, 0), _PROBE_TOKENS)
        writers[is_chat] = PromptWriter(tokenizer, overhead)
    questions = [_question(plan, request, writers) for request in plan.requests]
    return questions, bare.is_exact


def _question(plan: Plan, request: IntendedRequest, writers: dict[bool, PromptWriter]) -> Question:
    traffic = plan.traffic(request)
    is_chat = traffic.prompt.form == "chat"
    text = writers[is_chat].text(
        request.prompt_tokens,
        request.prompt_seed,
        request.prefix_tokens,
        crc32(request.tenant.encode()),
    )
    return Question(
        adapter=request.adapter,
        text=text,
        is_chat=is_chat,
        max_tokens=request.max_tokens,
        ignore_eos=traffic.answer.ignore_eos,
        sampling=traffic.sampling,
        request_id=f"loadtest-{plan.scenario.seed}-{request.index}",
    )

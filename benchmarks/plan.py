"""What is compared with what, on which work, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workload import ADAPTERS, BASE, Prompt, Work, mixed_work, uniform_work

ENGINE_INT8, ENGINE_BF16, SERVED = "engine_int8", "engine_bf16", "served"
TRANSFORMERS, PEFT_BF16, PEFT_FP32 = "transformers_bf16", "peft_bf16", "peft_fp32"

PROMPT_TOKENS = 64
QUICK_PROMPT_TOKENS = 16
MAX_ROWS = 32
_WARM_UP_TOKENS = 3
_QUICK_TOKENS = 3  # one of the prompt, two of decode steps


@dataclass(frozen=True, slots=True)
class Comparison:
    """Subjects that do the same work in turn, round after round: A, B, A, B, …"""

    name: str
    subjects: tuple[str, ...]
    work: Work
    num_rounds: int
    warm_up: Work  # of every subject, before the first round


def comparisons(prompts: list[Prompt], *, quick: bool) -> list[Comparison]:
    """The whole benchmark, or a smoke run of it with one short round each."""

    def compare(name: str, subjects: tuple[str, ...], work: Work, num_rounds: int) -> Comparison:
        if quick:
            every_adapter = Work(work.rows[: len(ADAPTERS)], 1)
            return Comparison(
                name, subjects, Work(work.rows, min(work.num_tokens, _QUICK_TOKENS)), 1, every_adapter
            )
        return Comparison(name, subjects, work, num_rounds, Work(work.rows, _WARM_UP_TOKENS))

    pair = (ENGINE_INT8, ENGINE_BF16)
    return [
        compare("served_vs_engine_32", (SERVED, ENGINE_INT8), mixed_work(prompts, 32, 64), 5),
        compare("served_vs_engine_8", (SERVED, ENGINE_INT8), mixed_work(prompts, 8, 64), 3),
        compare("served_vs_engine_1", (SERVED, ENGINE_INT8), mixed_work(prompts, 1, 64), 3),
        compare("int8_vs_bf16_8", pair, uniform_work(prompts, BASE, 8, 64), 5),
        compare("int8_vs_bf16_8_mixed", pair, mixed_work(prompts, 8, 64), 3),
        compare("single_vs_transformers", (ENGINE_INT8, TRANSFORMERS), uniform_work(prompts, BASE, 1, 64), 5),
        compare(
            "single_adapter_vs_peft",
            (ENGINE_INT8, PEFT_BF16),
            uniform_work(prompts, ADAPTERS[0], 1, 32),
            3,
        ),
        compare("mixed_vs_peft_8", (ENGINE_INT8, PEFT_BF16, PEFT_FP32), mixed_work(prompts, 8, 24), 3),
        compare("mixed_vs_peft_32", (ENGINE_INT8, PEFT_BF16, PEFT_FP32), mixed_work(prompts, 32, 24), 3),
    ]

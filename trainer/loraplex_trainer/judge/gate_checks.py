"""Decides each check of the gate from what was measured. Nothing here asks a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from loraplex_trainer.base_model import Precision
from loraplex_trainer.data.pii_patterns import personal_data
from loraplex_trainer.judge.evaluate import GradedAnswer
from loraplex_trainer.judge.gate_report import Check
from loraplex_trainer.judge.statistics import Change, Verdict, verdict_of_drop, verdict_of_gain
from loraplex_trainer.packaging.readable import change_text
from loraplex_trainer.recipe.sections import GateSection

# Largest and mean difference of a log-probability between the engine and transformers over weights that are rounded
# alike. In fp32 it is the order of summation. The others round activations, and keys and values, where transformers
# does not; there only tokens count that one of the two gives a hundredth, since rounding shows most in unlikely ones.
# int8 rounds every row of activations to 8 bits: where a model wavers between tokens, one of them may move far.
PARITY: Mapping[Precision, float] = {"fp32": 1e-3, "bf16": 0.5, "int8": 2.0, "nf4": 1.0}
PARITY_MEAN: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.2, "nf4": 0.2}
_LIKELY = math.log(1e-2)


@dataclass(frozen=True, slots=True)
class Position:
    """One token that the engine chose, and what the two think of the likeliest tokens there."""

    engine: Mapping[int, float]  # log-probability by token id
    trainer: Mapping[int, float]  # of the same ids
    chosen: int  # the engine's token
    trainer_best: float  # log-probability of the trainer's likeliest token


def parity_check(completions: Sequence[Sequence[Position]], precision: Precision) -> Check:
    """Whether the engine serves what was trained. The first token must be the trainer's too, up to a tie."""
    gaps = [
        gap for positions in completions for position in positions for gap in gaps_at(position, precision)
    ]
    largest, mean = max(gaps, default=float("inf")), sum(gaps) / max(1, len(gaps))
    limit = PARITY[precision]
    firsts = [positions[0] for positions in completions if positions]
    others = sum(first.trainer_best - first.trainer[first.chosen] > limit for first in firsts)
    agrees = largest <= limit and mean <= PARITY_MEAN[precision] and others == 0
    return Check(
        "served_equals_trained",
        "pass" if agrees else "fail",
        f"log-probabilities differ by at most {largest:.2g}, {mean:.2g} on average (allowed: {limit:g} and "
        f"{PARITY_MEAN[precision]:g}); {others} of {len(firsts)} first tokens are others"
        + (
            ""
            if agrees
            else "; the engine does not serve what was trained: look at template, base and scaling"
        ),
        {
            "largest": largest,
            "mean": mean,
            "limit": limit,
            "other_first_tokens": others,
            "prompts": len(firsts),
        },
    )


def gaps_at(position: Position, precision: Precision) -> list[float]:
    """Differences of the log-probabilities that count in this precision."""
    return [
        abs(ours - position.trainer[token])
        for token, ours in position.engine.items()
        if precision == "fp32" or max(ours, position.trainer[token]) >= _LIKELY
    ]


def unchanged_check(differences: Mapping[str, float], precision: Precision) -> Check:
    """`differences`: by package, the largest change of a log-probability of its answers since the new one is there."""
    limit = PARITY[precision]
    changed = sorted(name for name, value in differences.items() if value > limit)
    same = f"the golden answers of {', '.join(sorted(differences))} are the same with the adapter loaded"
    other = f"the answers of {', '.join(changed)} changed when the adapter was loaded; report that fault"
    return Check(
        "others_unchanged",
        "fail" if changed else "pass",
        other if changed else same,
        {"largest": max(differences.values(), default=0.0), "limit": limit, "asked": sorted(differences)},
    )


def gain_check(change: Change, gate: GateSection) -> Check:
    """Whether the adapter knows its domain better than the base."""
    verdict = verdict_of_gain(change, gate.min_domain_gain)
    advice = {
        "pass": "",
        "fail": "; more or better rows, more epochs or a higher rank",
        "inconclusive": f"; {change.n} held-out questions are too few to tell, write more",
    }
    return Check(
        "domain_gain",
        verdict,
        f"{change_text(asdict(change))} on {change.n} questions, asked for more than {gate.min_domain_gain:g}"
        + advice[verdict],
        asdict(change),
    )


def drop_check(change: Change, gate: GateSection) -> Check:
    """Whether the adapter has forgotten what the base knows."""
    if change.n == 0:
        message = "no general questions were asked; name suites in eval.general"
        return Check("general_drop", "inconclusive", message, asdict(change))
    verdict = verdict_of_drop(change, gate.max_general_drop)
    advice = {
        "pass": "",
        "fail": "; mix more general conversations in (data.general), or train fewer epochs",
        "inconclusive": "; the interval holds both, more general questions would tell",
    }
    return Check(
        "general_drop",
        verdict,
        f"{change_text(asdict(change))} on {change.n} questions, allowed to lose {gate.max_general_drop:g}"
        + advice[verdict],
        asdict(change),
    )


def ending_check(answers: Sequence[GradedAnswer], gate: GateSection) -> Check:
    """Whether answers end by themselves."""
    ended = sum(answer.has_ended for answer in answers)
    rate = ended / max(1, len(answers))
    return Check(
        "ends_by_itself",
        _share_verdict(rate >= gate.min_eos_rate, len(answers)),
        f"{ended} of {len(answers)} answers end with the end-of-sequence token, asked for {gate.min_eos_rate:.0%}"
        + (
            ""
            if rate >= gate.min_eos_rate
            else "; check that every trained answer ends with it (train preflight)"
        ),
        {"rate": rate, "n": len(answers)},
    )


def quality_check(answers: Sequence[GradedAnswer], gate: GateSection) -> Check:
    """Whether answers are empty, repeat themselves, echo the question or miss the subject."""
    bad = [answer for answer in answers if answer.problems]
    rate = len(bad) / max(1, len(answers))
    kinds = sorted({problem for answer in bad for problem in answer.problems})
    found = f"{len(bad)} of {len(answers)} answers are bad, allowed are {gate.max_bad_samples:.0%}"
    named = f" ({', '.join(kinds)})" if kinds else ""
    advice = "" if rate <= gate.max_bad_samples else "; look at them in eval.json, and at the data"
    return Check(
        "sound_answers",
        _share_verdict(rate <= gate.max_bad_samples, len(answers)),
        found + named + advice,
        {"rate": rate, "n": len(answers), "problems": kinds},
    )


def privacy_check(answers: Iterable[GradedAnswer]) -> Check:
    """Whether an answer holds personal data; the report tells of kinds and questions, never of a value."""
    found = {
        answer.id: sorted({entry.kind for entry in personal_data(answer.adapter)})
        for answer in answers
        if personal_data(answer.adapter)
    }
    kinds = sorted({kind for entries in found.values() for kind in entries})
    return Check(
        "no_personal_data",
        "fail" if found else "pass",
        f"{len(found)} answers hold personal data ({', '.join(kinds)}); mask it in the training data (data.clean.pii)"
        if found
        else "no answer holds personal data",
        {"answers": found},
    )


def _share_verdict(is_met: bool, n: int) -> Verdict:
    if n == 0:
        return "inconclusive"
    return "pass" if is_met else "fail"

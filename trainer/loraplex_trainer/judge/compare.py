"""Two trainings of one recipe side by side: LoRA against QLoRA, or raw data against cleaned data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_trainer.base_model import Precision
from loraplex_trainer.errors import RecipeError, RunIncompleteError
from loraplex_trainer.judge.evaluate import Evaluation, evaluate_run
from loraplex_trainer.judge.general import StageProgress
from loraplex_trainer.judge.statistics import Change, Verdict, paired_change, verdict_of_drop
from loraplex_trainer.recipe.document import Recipe, parse_recipe
from loraplex_trainer.train.run_folder import RunFolder

if TYPE_CHECKING:
    from loraplex_trainer.train.events import TrainEvent
    from loraplex_trainer.train.report import TrainReport

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "quant": {"bits": "auto"}},
    "qlora": {"method": "qlora", "quant": {"bits": "auto"}},
    "clean": {},
    "raw": {
        "data": {
            "clean": {
                # Personal data stays masked: nothing may be trained on it, not even for a comparison.
                "dedup": {"exact": False, "near": None},
                "min_chars_mode": "off",
                "lint": "off",
                "conflicts": "report",
            }
        }
    },
}
"""What of the recipe each variant changes."""
PAIRS = (("lora", "qlora"), ("raw", "clean"))


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the two trainings."""

    name: str
    run_folder: Path
    report: TrainReport
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second variant against the first, on the same questions."""

    first: Variant
    second: Variant
    domain_change: Change  # second minus first
    max_loss: float | None  # points that the second may lose; None: it is not judged
    verdict: Verdict | None
    seconds: float

    def document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "variants": {variant.name: _row(variant) for variant in (self.first, self.second)},
            "domain_change": asdict(self.domain_change),
            "max_quality_loss": self.max_loss,
            "verdict": self.verdict,
            "seconds": self.seconds,
        }


def compare(
    first: str,
    second: str,
    recipe: Recipe,
    recipe_folder: Path,
    base_folder: Path,
    output: Path,
    *,
    precision: Precision | None = None,
    others: Sequence[Path] = (),
    on_event: Callable[[TrainEvent], None] | None = None,
    progress: StageProgress | None = None,
) -> Comparison:
    """Train and evaluate both variants, each into a folder of its name under `output`. What is trained there already is
    gone on with, so that a comparison which paused or was killed is made again by the same call.

    The recipe should name a file of held-out questions, since variants of the data hold back other rows.
    Raises RecipeError for variants that are no pair, RunIncompleteError for one that
    paused, and whatever training and evaluation raise.
    """
    if (first, second) not in PAIRS and (second, first) not in PAIRS:
        pairs = " or ".join(" with ".join(pair) for pair in PAIRS)
        raise RecipeError(f"{first!r} and {second!r} are no pair to compare; compare {pairs}")
    if recipe.eval.domain is None and "raw" in (first, second):
        raise RecipeError(
            "eval.domain: raw and clean data hold back other rows; name a file of questions for both"
        )
    started = time.monotonic()
    variants = []
    for name in (first, second):
        report = _trained(name, recipe, recipe_folder, base_folder, output / name, on_event)
        evaluation = evaluate_run(
            RunFolder(report.run_folder),
            recipe_folder,
            base_folder,
            precision=precision,
            others=others,
            progress=progress,
        )
        variants.append(Variant(name, report.run_folder, report, evaluation))
    return _comparison(variants[0], variants[1], recipe, round(time.monotonic() - started, 1))


def _trained(
    name: str,
    recipe: Recipe,
    recipe_folder: Path,
    base_folder: Path,
    folder: Path,
    on_event: Callable[[TrainEvent], None] | None,
) -> TrainReport:
    from loraplex_trainer.train.session import train

    report = train(
        variant_of(recipe, name),
        recipe_folder,
        folder,
        base_folder,
        resume=RunFolder(folder).is_begun,
        on_event=on_event,
    )
    if report.status != "finished":
        raise RunIncompleteError(
            f"the run '{name}' is {report.status}: look at its samples.jsonl, then give the same command again to go on"
        )
    return report


def variant_of(recipe: Recipe, name: str) -> Recipe:
    """The recipe with what the variant changes. Raises RecipeError where it does not allow that."""
    return parse_recipe(_merged(recipe.model_dump(mode="json"), VARIANTS[name]), f"variant {name}")


def _comparison(first: Variant, second: Variant, recipe: Recipe, seconds: float) -> Comparison:
    scores = [
        {answer.id: answer.adapter_score for answer in variant.evaluation.answers}
        for variant in (first, second)
    ]
    shared = sorted(scores[0].keys() & scores[1].keys())
    change = paired_change(
        [scores[0][key] for key in shared], [scores[1][key] for key in shared], recipe.gate.confidence
    )
    is_judged = (first.name, second.name) == ("lora", "qlora")
    limit = recipe.gate.max_quality_loss_vs_lora if is_judged else None
    verdict = None if limit is None else verdict_of_drop(change, limit)
    return Comparison(first, second, change, limit, verdict, seconds)


def _row(variant: Variant) -> dict[str, Any]:
    report = variant.report
    return {
        "domain_base": asdict(variant.evaluation.domain_base),
        "domain_adapter": asdict(variant.evaluation.domain_adapter),
        "general_base": asdict(variant.evaluation.general_base),
        "general_adapter": asdict(variant.evaluation.general_adapter),
        "num_rows": report.num_rows,
        "method": report.method,
        "peak_memory_bytes": report.peak_memory_bytes,
        "planned_memory_bytes": report.planned_memory_bytes,
        "tokens_per_second": report.tokens_per_s,
        "seconds": report.seconds,
    }


def _merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, dict) else value
    return merged

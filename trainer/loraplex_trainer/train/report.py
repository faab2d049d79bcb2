"""What a run did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.events import EndStatus
from loraplex_trainer.train.preflight import Preflight
from loraplex_trainer.train.run_folder import RunFolder

StageEnd = Literal["done", "paused", "cancelled"]
_VERSIONED = ("torch", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did. Epochs and losses of the best validation, where there was one."""

    name: str
    end: StageEnd
    num_rows: int
    num_val: int
    num_steps: int
    num_epochs: float
    num_tokens: int  # in this process
    final_loss: float | None
    best_epoch: float | None
    best_loss: float | None
    alarms: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the time on the device came to, by the recipe's price."""

    gpu_seconds: float  # 0 on a CPU
    price_per_gpu_hour: float | None
    total: float | None  # in the currency of the price


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did. Losses are natural logarithms per token."""

    status: EndStatus
    run_folder: Path
    tenant: str
    name: str
    method: str
    device: str
    stages: tuple[StageReport, ...]
    num_rows: int  # of the last stage
    num_val: int
    num_steps: int
    final_loss: float | None
    first_perplexity: float | None  # of the validation rows before the first step
    best_perplexity: float | None  # the run's adapter
    best_epoch: float | None
    sample_accuracy: float | None  # of the typical questions after the last epoch
    seconds: float  # of all processes that took part
    tokens_per_s: float | None  # of the last steps
    peak_memory_bytes: int
    planned_memory_bytes: int
    trainable_parameters: int
    adapter_bytes: int  # 0 before the first stage has ended
    cost: Cost
    seed: int
    recipe_sha256: str
    data_sha256: str
    preflight: Preflight
    warnings: tuple[str, ...]
    versions: dict[str, str]

    def document(self) -> dict[str, Any]:
        """JSON values; the folder by its name, since its path is of this machine."""
        return {**asdict(self), "run_folder": self.run_folder.name}


def make_report(
    run: RunFolder,
    status: Any,
    recipe: Recipe,
    plan: TrainingPlan,
    stages: Sequence[StageReport],
    *,
    recipe_sha256: str,
    data_sha256: str,
    preflight: Preflight,
    warnings: tuple[str, ...],
    seconds: float,
    peak_memory_bytes: int,
) -> TrainReport:
    """The report of a run that has ended, for now or for good."""
    from loraplex_trainer.train.adapter import WEIGHTS_FILE
    from loraplex_trainer.train.curves import read_curves

    curves = read_curves(run)
    last = stages[-1]
    weights = run.best / WEIGHTS_FILE
    perplexities = curves.values("eval/perplexity")
    own = curves.of_stage(last.name).values("eval/perplexity")
    return TrainReport(
        status=status,
        run_folder=run.path,
        tenant=recipe.tenant,
        name=recipe.name,
        method=plan.method,
        device=plan.device,
        stages=tuple(stages),
        num_rows=last.num_rows,
        num_val=last.num_val,
        num_steps=sum(stage.num_steps for stage in stages),
        final_loss=last.final_loss,
        first_perplexity=perplexities[0] if perplexities else None,
        best_perplexity=min(own[1:], default=None),
        best_epoch=last.best_epoch,
        sample_accuracy=curves.last("samples/accuracy"),
        seconds=seconds,
        tokens_per_s=curves.last("train/tokens_per_s"),
        peak_memory_bytes=peak_memory_bytes,
        planned_memory_bytes=plan.memory.total,
        trainable_parameters=plan.trainable_parameters,
        adapter_bytes=weights.stat().st_size if weights.is_file() else 0,
        cost=cost_of(recipe, plan, seconds),
        seed=recipe.train.seed,
        recipe_sha256=recipe_sha256,
        data_sha256=data_sha256,
        preflight=preflight,
        warnings=warnings,
        versions={name: version(name) for name in _VERSIONED},
    )


def cost_of(recipe: Recipe, plan: TrainingPlan, seconds: float) -> Cost:
    gpu_seconds = seconds if plan.device == "cuda" else 0.0
    price = recipe.resources.price_per_gpu_hour
    return Cost(gpu_seconds, price, None if price is None else round(price * gpu_seconds / 3600, 4))

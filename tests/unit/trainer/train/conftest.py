"""A tiny plan, built data, and one call that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_trainer.data.built import BuiltData
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.plan.training_plan import MemoryEstimate, TrainingPlan
from loraplex_trainer.recipe.document import Recipe, parse_recipe
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.session import train

from ..conftest import SYSTEM

COLOURS = ("red", "green", "blue", "grey", "black", "white", "pink", "brown")


def row(question: str, answer: str, tier: int | None = None) -> Row:
    return Row((Message(role="user", content=question),), answer, "rows.jsonl", "line 1", tier)


def colour_rows(count: int = 4) -> tuple[Row, ...]:
    return tuple(row(f"What is {word}?", f"{word.title()}.") for word in COLOURS[:count])


def built(train_rows: Sequence[Row], val_rows: Sequence[Row] = (), folder: Path = Path("data")) -> BuiltData:
    digest = hashlib.sha256("".join(r.id for r in (*train_rows, *val_rows)).encode()).hexdigest()
    report: Any = None
    return BuiltData(folder, tuple(train_rows), tuple(val_rows), digest, report, ())


def tiny_plan(**changes: Any) -> TrainingPlan:
    plan = TrainingPlan(
        method="lora-fp32",
        device="cpu",
        compute="fp32",
        optimizer="adamw",
        learning_rate=0.01,
        rank=2,
        alpha=4.0,
        target_modules=tuple(sorted(LORA_MODULES)),
        unquantized=(),
        double_quant=True,
        micro_batch=2,
        accumulation=1,
        checkpointing=False,
        packing=False,
        max_length=160,
        trainable_parameters=3000,
        memory=MemoryEstimate(1, 1, 1, 1, 1),
        available_bytes=2**34,
        measured_peak_bytes=None,
        choices=(),
        rejected=(),
        rule_of_thumb="",
    )
    return replace(plan, **changes)


def tiny_recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "system": SYSTEM,
        "data": {"sources": [{"path": "train.jsonl"}], "max_length": 160},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "train": {"epochs": {"min": 1, "max": 1}, "effective_batch": 2, "learning_rate": 0.01, "seed": 7},
        "samples": {"n": 0},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    return parse_recipe(content, "recipe")


class Trains(Protocol):
    def __call__(
        self,
        name: str,
        recipe: Recipe | None = ...,
        data: BuiltData | None = ...,
        plan: TrainingPlan | None = ...,
        **options: Any,
    ) -> TrainReport: ...


@pytest.fixture
def train_tiny(tiny_base: Path, tmp_path: Path) -> Trains:
    """Trains on the tiny base into a folder of that name."""

    def call(
        name: str,
        recipe: Recipe | None = None,
        data: BuiltData | None = None,
        plan: TrainingPlan | None = None,
        **options: Any,
    ) -> TrainReport:
        return train(
            recipe or tiny_recipe(),
            tmp_path,
            tmp_path / name,
            tiny_base,
            plan=plan or tiny_plan(),
            data=data or built(colour_rows()),
            **options,
        )

    return call

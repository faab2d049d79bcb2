"""Patience, overfit alarm, patch, streak of bad answers, curriculum: decisions without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.sections import EpochsSection
from loraplex_trainer.train.overfit import OverfitWatch, apply_patch, overfit_patch
from loraplex_trainer.train.patience import Patience
from loraplex_trainer.train.run_folder import append_line, read_lines
from loraplex_trainer.train.samples import typical_rows
from loraplex_trainer.train.stages import Stage, with_curriculum

from .conftest import row, tiny_recipe


def _stops_at(losses: Sequence[float], patience: Patience) -> int | None:
    for epoch, loss in enumerate(losses, start=1):
        patience.see(loss, epoch)
        if patience.is_over(epoch):
            return epoch
    return None


@pytest.mark.parametrize(
    ("losses", "allowed", "least", "stop", "best"),
    [
        ([3, 2, 2.1, 2.2, 2.3, 1.0], 3, 3, 5, 2),
        ([3, 2, 2.1, 2.2, 1.9, 2.0], 3, 3, None, 5),
        ([1, 2, 3, 4, 5], 1, 4, 4, 1),
        ([1, 1, 1, 1], 3, 1, 4, 1),  # not lower is not better
        ([1, 2, 3, 4, 5, 6], 0, 1, None, 1),
    ],
)
def test_patience_ends_after_so_many_evaluations_without_a_lower_loss(
    losses: list[float], allowed: int, least: int, stop: int | None, best: int
) -> None:
    patience = Patience(allowed, least)

    assert _stops_at(losses, patience) == stop
    assert patience.best_epoch == best


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(0, 12))
def test_restored_patience_decides_as_if_it_had_seen_all(losses: list[float], cut: int) -> None:
    straight, first, second = Patience(2, 3), Patience(2, 3), Patience(2, 3)
    for epoch, loss in enumerate(losses, start=1):
        straight.see(loss, epoch)
        first.see(loss, epoch) if epoch <= cut else None
    second.restore(first.state())
    for epoch, loss in enumerate(losses[cut:], start=cut + 1):
        second.see(loss, epoch)

    assert second.state() == straight.state()


def _alarms(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    watch = OverfitWatch(ratio=1.30, widening_evals=2)
    return [watch.see(val, train) for val, train in pairs]


def test_the_alarm_needs_the_ratio_and_a_gap_that_widens() -> None:
    assert _alarms([(1.0, 1.0), (1.1, 0.9), (1.3, 0.8)]) == [False, False, True]
    assert _alarms([(1.0, 1.0), (1.0, 0.95), (1.0, 0.9)]) == [False, False, False]  # widening, 1.11
    assert _alarms([(2.0, 1.0), (2.0, 1.0), (2.0, 1.0)]) == [False, False, False]  # 2.0, and steady


def test_the_patch_of_the_alarm_applies_to_the_recipe() -> None:
    recipe = tiny_recipe(train={"epochs": {"min": 3, "max": 10}}, lora={"dropout": 0.05})
    patch = yaml.safe_load(yaml.safe_dump(overfit_patch(recipe, best_epoch=2)))
    patched = apply_patch(recipe, patch)

    assert patched.lora.dropout == 0.10
    assert patched.lora.rank == recipe.lora.rank
    assert patched.train.weight_decay == 0.01
    assert (patched.train.epochs.min, patched.train.epochs.max) == (2, 2)
    assert (patched.data.general.path, patched.data.general.share) == ("bundled", 0.10)
    assert patched.data.sources == recipe.data.sources


def test_a_patch_with_a_key_that_no_recipe_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.epoch"):
        apply_patch(tiny_recipe(), {"train": {"epoch": 1}})


def test_typical_questions_are_of_every_tier_and_every_length() -> None:
    rows = [row(f"Q{tier}-{n}", "a" * n, tier) for tier in (1, 2, 3) for n in range(1, 11)]
    chosen = typical_rows(rows, 6)

    assert sorted(one.tier or 0 for one in chosen) == [1, 1, 2, 2, 3, 3]
    assert {len(one.completion) > 5 for one in chosen} == {True, False}
    assert chosen == typical_rows(rows[::-1], 6)
    assert typical_rows(rows[:2], 6) == rows[:2]


def _tiers(mode: str, rows: Sequence[Row], tiers: str = "given") -> list[Stage]:
    stage = Stage("domain", tuple(rows), (), EpochsSection(min=1, max=7), None)
    recipe = tiny_recipe(curriculum={"mode": mode, "tiers": tiers})
    return with_curriculum(stage, recipe, lambda some: [float(len(r.completion)) for r in some])


def test_the_curriculum_trains_one_tier_after_the_other() -> None:
    rows = [row(f"Q{n}", "a", 1 + n % 3) for n in range(6)]
    stages = _tiers("staged", rows)

    assert [[r.tier for r in stage.train] for stage in stages] == [[1, 1], [2, 2], [3, 3]]
    assert [stage.epochs.max for stage in stages] == [2, 2, 3]
    assert [stage.name for stage in stages] == ["domain-tier-1", "domain-tier-2", "domain-tier-3"]


def test_the_cumulative_curriculum_keeps_the_easier_tiers() -> None:
    rows = [row(f"Q{n}", "a", 1 + n % 3) for n in range(6)]

    assert [sorted(r.tier or 0 for r in stage.train) for stage in _tiers("cumulative", rows)] == [
        [1, 1],
        [1, 1, 2, 2],
        [1, 1, 2, 2, 3, 3],
    ]


def test_tiers_that_nobody_gave_are_thirds_by_the_bases_loss() -> None:
    rows = [row(f"Q{n}", "a" * n) for n in (9, 1, 5, 2, 8, 4)]
    stages = _tiers("staged", rows, tiers="auto")

    assert [sorted(len(r.completion) for r in stage.train) for stage in stages] == [[1, 2], [4, 5], [8, 9]]


def test_without_a_curriculum_a_stage_stays_whole() -> None:
    assert len(_tiers("off", [row("Q", "a", 1), row("R", "b", 3)])) == 1


def test_a_sample_with_a_line_separator_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    for text in ("one\u2028line", "next\x85line"):
        append_line(file, {"adapter": text})

    assert [line["adapter"] for line in read_lines(file)] == ["one\u2028line", "next\x85line"]

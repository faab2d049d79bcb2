"""A run that is told of a server takes no step while requests wait there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.train import session
from loraplex_trainer.train.give_way import giving_way_to, wait_turn
from loraplex_trainer.train.together import check_together

from .conftest import Trains, tiny_recipe


def test_a_step_waits_until_the_queue_is_short() -> None:
    queue = iter([9, 3, 2])
    pauses: list[float] = []

    wait_turn(lambda: next(queue), now_s=lambda: 0.0, sleep=pauses.append)

    assert len(pauses) == 2


def test_a_server_that_is_always_busy_only_slows_the_training_down() -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    wait_turn(lambda: 100, now_s=lambda: clock[0], sleep=sleep)

    assert 10 <= clock[0] < 11


def test_a_server_that_is_gone_holds_nothing_up() -> None:
    with giving_way_to("127.0.0.1:1") as turn:
        turn()


def test_a_run_gives_way_to_the_server_that_its_recipe_names(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    @contextmanager
    def giving_way(address: str) -> Iterator[object]:
        yield lambda: asked.append(address)

    monkeypatch.setattr(session, "giving_way_to", giving_way)
    report = train_tiny("run", tiny_recipe(resources={"yield_to": "10.0.0.1:50051"}))

    assert asked == ["10.0.0.1:50051"] * report.num_steps


def test_recipes_of_one_pass_yield_to_one_server() -> None:
    recipes = [tiny_recipe(name=name, resources={"yield_to": f"{name}:1"}) for name in ("a", "b")]

    with pytest.raises(RecipeError, match="yield to different servers"):
        check_together(recipes)

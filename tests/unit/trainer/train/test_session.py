from __future__ import annotations

from pathlib import Path

from loraplex_trainer.train.adapter import WEIGHTS_FILE

from .conftest import Trains, built, colour_rows, tiny_recipe


def test_the_same_seed_gives_the_same_bytes(train_tiny: Trains) -> None:
    reports = [
        train_tiny("a"),
        train_tiny("b"),
        train_tiny("c", tiny_recipe(train={"seed": 8})),
    ]

    weights = [(report.run_folder / "best" / WEIGHTS_FILE).read_bytes() for report in reports]
    assert weights[0] == weights[1] != weights[2]

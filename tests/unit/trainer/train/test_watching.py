"""What is watched while a run goes on: answers, overfitting, scalars, the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraplex_trainer.recipe.document import read_recipe
from loraplex_trainer.train import samples
from loraplex_trainer.train.events import OverfitAlarm, Paused, Sampled, TrainEvent
from loraplex_trainer.train.overfit import apply_patch
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.run_folder import RunFolder, read_lines
from loraplex_trainer.train.samples import Answer
from loraplex_trainer.train.session import train

from .conftest import Trains, built, colour_rows, row, tiny_plan, tiny_recipe

SPLIT = built(colour_rows(6)[:4], colour_rows(6)[4:])


@pytest.fixture(scope="module")
def watched(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """Two epochs with samples. Read-only."""
    folder = tmp_path_factory.mktemp("watched")
    recipe = tiny_recipe(
        train={"epochs": {"min": 1, "max": 2}, "weight_decay": 0.0},
        samples={"n": 2, "max_new_tokens": 6, "pause_if_bad": 1.0},
        resources={"price_per_gpu_hour": 2.5},
    )
    return train(recipe, folder, folder / "run", tiny_base, plan=tiny_plan(), data=SPLIT)


def test_all_scalars_reach_tensorboard_and_the_metrics_file(watched: TrainReport) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(watched.run_folder)
    events = EventAccumulator(str(run.tensorboard)).Reload()
    names = {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_per_s",
        "train/peak_memory_bytes",
        "eval/loss",
        "eval/perplexity",
        "eval/train_loss",
        "eval/gap",
        "eval/token_accuracy",
        "samples/accuracy",
        "samples/bad_share",
    }

    assert set(events.Tags()["scalars"]) == names
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 2, 4]
    written = [line["eval/loss"] for line in read_lines(run.metrics) if "eval/loss" in line]
    assert [event.value for event in events.Scalars("eval/loss")] == pytest.approx(written)


def test_base_and_adapter_answer_the_same_questions_after_every_epoch(watched: TrainReport) -> None:
    lines = read_lines(RunFolder(watched.run_folder).samples)

    assert [line["epoch"] for line in lines] == [1, 1, 2, 2]
    assert {line["question"] for line in lines} == {"What is black?", "What is white?"}
    for line in lines:
        assert line["base"] == next(other["base"] for other in lines if other["row"] == line["row"])
        assert line["reference"] in ("Black.", "White.")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_report_is_one_page_with_its_plots_and_needs_nothing_else(watched: TrainReport) -> None:
    text = RunFolder(watched.run_folder).report_page.read_text()
    page = _Page()
    page.feed(text)
    tags = [tag for tag, _ in page.tags]

    assert tags.count("svg") == 4
    assert all(title in text for title in ("Loss", "Perplexity", "Gap", "Accuracy"))
    assert not {"script", "link", "img", "iframe"} & set(tags)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert not (attributes.get(name) or "#").startswith(("http", "/", "file"))
    assert "What is black?" in text


def test_what_data_and_models_say_is_escaped_in_the_page(train_tiny: Trains) -> None:
    rows = (row("What is <script>alert(1)</script>?", "<b>Bold</b>."), *colour_rows(3))
    report = train_tiny("run", tiny_recipe(samples={"n": 4, "max_new_tokens": 2}), built(rows))
    text = RunFolder(report.run_folder).report_page.read_text()

    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_report_says_what_was_done_and_names_no_path(watched: TrainReport, tmp_path: Path) -> None:
    run = RunFolder(watched.run_folder)
    report = json.loads(run.report.read_text())

    assert report["status"] == run.read_state().status == "finished"
    assert report["num_steps"] == 4
    assert report["best_perplexity"] <= report["first_perplexity"]
    assert report["peak_memory_bytes"] > 0
    assert report["adapter_bytes"] == (run.best / "adapter_model.safetensors").stat().st_size
    assert str(run.path.parent) not in run.report.read_text() + run.report_page.read_text()
    assert yaml.safe_load(run.resolved.read_text())["train"]["learning_rate"] == 0.01
    assert json.loads(run.plan.read_text())["method"] == "lora-fp32"
    assert read_recipe(run.recipe).sha256() == report["recipe_sha256"]


def test_gpu_seconds_are_reckoned_at_the_recipes_price() -> None:
    from loraplex_trainer.train.report import cost_of

    recipe = tiny_recipe(resources={"price_per_gpu_hour": 2.5})

    assert cost_of(recipe, tiny_plan(device="cuda"), 1440.0).total == 1.0
    assert cost_of(recipe, tiny_plan(), 1440.0).total == 0.0
    assert cost_of(tiny_recipe(), tiny_plan(device="cuda"), 1440.0).total is None


def _answers_with(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def answer(model: Any, tokenizer: Any, prompts: Any, limit: int, adapter: Any = None) -> list[Answer]:
        return [Answer(text, True) for _ in prompts]

    monkeypatch.setattr(samples, "answer_greedily", answer)


SAMPLED = {"n": 2, "max_new_tokens": 4}
EPOCHS_6 = {"epochs": {"min": 1, "max": 5}}


def test_a_run_whose_answers_are_bad_twice_pauses_and_goes_on_when_resumed(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train=EPOCHS_6, samples=SAMPLED)
    _answers_with(monkeypatch, "spam spam spam " * 9)
    seen: list[TrainEvent] = []
    paused = train_tiny("run", recipe, SPLIT, on_event=seen.append)
    run = RunFolder(paused.run_folder)

    assert (paused.status, run.read_state().status) == ("paused", "paused")
    assert paused.num_steps == 4
    (event,) = [event for event in seen if isinstance(event, Paused)]
    assert event.epoch == 2
    assert "2 of 2" in event.why
    assert "repetition" in event.why
    assert [e.num_bad for e in seen if isinstance(e, Sampled)] == [2, 2]

    again = train_tiny("run", recipe, SPLIT, resume=True)
    assert (again.status, again.num_steps) == ("paused", 8)  # two bad epochs more
    finished = train_tiny("run", recipe, SPLIT, resume=True)
    assert (finished.status, finished.num_steps) == ("finished", 10)


def test_a_run_whose_answers_are_sound_does_not_pause(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers_with(monkeypatch, "Black. White.")

    assert train_tiny("run", tiny_recipe(train=EPOCHS_6, samples=SAMPLED), SPLIT).status == "finished"


def test_memorising_raises_the_overfit_alarm_with_a_patch_that_applies(train_tiny: Trains) -> None:
    recipe = tiny_recipe(train={"epochs": {"min": 12, "max": 12}, "effective_batch": 2, "patience": 0})
    rows = [
        row(f"What is {word}?", word[::-1] + "!")
        for word in ("abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx", "yzab")
    ]
    seen: list[TrainEvent] = []
    report = train_tiny(
        "run", recipe, built(rows[:4], rows[4:]), tiny_plan(learning_rate=0.05, rank=8), on_event=seen.append
    )
    alarms = [event for event in seen if isinstance(event, OverfitAlarm)]
    patch = yaml.safe_load(RunFolder(report.run_folder).overfit_patch.read_text())

    assert alarms
    assert alarms[0].epoch >= 2  # a fresh adapter has no gap that widens
    assert alarms[0].ratio >= 1.30
    assert apply_patch(recipe, patch).lora.dropout == 0.10
    assert len(report.stages[0].alarms) == len(alarms)


@pytest.mark.parametrize("on_alarm", ["stop", "rollback"])
def test_an_alarm_can_end_the_stage_with_its_best_adapter(train_tiny: Trains, on_alarm: str) -> None:
    recipe = tiny_recipe(
        train={"epochs": {"min": 12, "max": 12}, "patience": 0}, overfit={"on_alarm": on_alarm}
    )
    rows = [
        row(f"What is {word}?", word[::-1] + "!")
        for word in ("abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx", "yzab")
    ]
    report = train_tiny("run", recipe, built(rows[:4], rows[4:]), tiny_plan(learning_rate=0.05, rank=8))

    assert report.status == "finished"
    assert len(report.stages[0].alarms) == 1
    assert report.stages[0].num_epochs < 12
    assert report.stages[0].num_epochs == report.stages[0].alarms[0]["epoch"]


def test_no_timestamp_or_name_of_a_library_makes_two_pages_differ(watched: TrainReport) -> None:
    from loraplex_trainer.train.curves import read_curves
    from loraplex_trainer.train.report_page import report_page

    run = RunFolder(watched.run_folder)
    pages = [report_page(watched, read_curves(run), read_lines(run.samples)) for _ in range(2)]

    assert re.search(r"\d{4}-\d{2}-\d{2}T", pages[0]) is None
    assert len(pages[0]) == len(pages[1])

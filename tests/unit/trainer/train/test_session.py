from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraplex_trainer import base_model
from loraplex_trainer.errors import (
    RunFolderError,
    TrainingDataError,
    TrainingDivergedError,
    TrainingStorageError,
)
from loraplex_trainer.train import adapter, stage_run
from loraplex_trainer.train.adapter import CONFIG_FILE, WEIGHTS_FILE
from loraplex_trainer.train.checkpoints import resume_step
from loraplex_trainer.train.curves import read_curves
from loraplex_trainer.train.events import Advanced, Evaluated, Finished, Log, StageStarted, Step, TrainEvent
from loraplex_trainer.train.peak_memory import PeakMemory
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.run_folder import RunFolder, alone_in, read_lines
from loraplex_trainer.train.session import train

from .conftest import Trains, built, colour_rows, row, tiny_plan, tiny_recipe

EPOCHS_4 = {"epochs": {"min": 1, "max": 4}}
SPLIT = built(colour_rows(6)[:4], colour_rows(6)[4:])


@pytest.fixture(scope="module")
def straight(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """Four epochs of two steps in one go. Read-only."""
    folder = tmp_path_factory.mktemp("straight")
    return train(tiny_recipe(train=EPOCHS_4), folder, folder / "run", tiny_base, plan=tiny_plan(), data=SPLIT)


def weights(report: TrainReport) -> bytes:
    return (report.run_folder / "best" / WEIGHTS_FILE).read_bytes()


def stop_at(step: int) -> Any:
    """A `should_stop` that says yes at the given question."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= step


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train_tiny: Trains) -> None:
    reports = [train_tiny("a"), train_tiny("b"), train_tiny("c", tiny_recipe(train={"seed": 8}))]

    assert weights(reports[0]) == weights(reports[1]) != weights(reports[2])


@pytest.mark.parametrize("step", [1, 5, 6], ids=["before-any-epoch", "within-an-epoch", "at-its-end"])
def test_a_resumed_run_ends_with_the_bytes_of_a_straight_one(train_tiny: Trains, step: int) -> None:
    recipe = tiny_recipe(train=EPOCHS_4, lora={"dropout": 0.2})
    straight = train_tiny("straight", recipe, SPLIT)
    cancelled = train_tiny("resumed", recipe, SPLIT, should_stop=stop_at(step))
    assert cancelled.num_steps == step == resume_step(cancelled.run_folder / "checkpoints")
    resumed = train_tiny("resumed", recipe, SPLIT, resume=True)

    assert (cancelled.status, resumed.status) == ("cancelled", "finished")
    assert weights(resumed) == weights(straight)
    curves = [read_curves(RunFolder(r.run_folder)) for r in (straight, resumed)]
    for name in ("eval/loss", "eval/gap"):
        assert curves[0].points(name) == curves[1].points(name)
    assert [step for step, _ in curves[1].points("eval/loss")] == [0, 2, 4, 6, 8]
    assert resumed.num_steps == straight.num_steps == 8


def test_a_checkpoint_that_a_kill_cut_off_is_not_resumed_from(
    train_tiny: Trains, straight: TrainReport
) -> None:
    recipe = tiny_recipe(train=EPOCHS_4)
    cancelled = train_tiny("cut", recipe, SPLIT, should_stop=stop_at(5))
    (stage,) = (cancelled.run_folder / "checkpoints").iterdir()
    half = stage / "checkpoint-6"
    half.mkdir()
    (half / WEIGHTS_FILE).write_bytes(b"half")
    resumed = train_tiny("cut", recipe, SPLIT, resume=True)

    assert weights(resumed) == weights(straight)


def test_a_run_killed_after_its_last_epoch_only_writes_what_is_missing(
    train_tiny: Trains, tmp_path: Path
) -> None:
    report = train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT)
    before = weights(report)
    run = RunFolder(report.run_folder)
    run.change_state(stages_done=0, status="running")
    (run.best / WEIGHTS_FILE).unlink()
    seen: list[TrainEvent] = []
    train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT, resume=True, on_event=seen.append)

    assert weights(report) == before
    assert not [event for event in seen if isinstance(event, Step)]


def test_a_folder_with_a_run_is_refused_and_one_without_cannot_be_resumed(train_tiny: Trains) -> None:
    with pytest.raises(RunFolderError, match="without --resume"):
        train_tiny("none", resume=True)
    train_tiny("run")
    with pytest.raises(RunFolderError, match="--output"):
        train_tiny("run")


def test_a_run_is_not_resumed_with_another_recipe_or_other_data(train_tiny: Trains) -> None:
    recipe = tiny_recipe(train=EPOCHS_4)
    train_tiny("run", recipe, SPLIT, should_stop=stop_at(3))

    with pytest.raises(RunFolderError, match="recipe is not the one"):
        train_tiny("run", tiny_recipe(train={"seed": 9}), SPLIT, resume=True)
    with pytest.raises(RunFolderError, match="data is not"):
        train_tiny("run", recipe, built(colour_rows(3)), resume=True)


def test_resuming_what_is_finished_changes_neither_its_peak_nor_its_status(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train=EPOCHS_4)
    report = train_tiny("run", recipe, SPLIT)
    monkeypatch.setattr(PeakMemory, "peak_bytes", 1)
    resumed = train_tiny("run", recipe, SPLIT, resume=True)
    with pytest.raises(RunFolderError, match="data is not"):
        train_tiny("run", recipe, built(colour_rows(3)), resume=True)

    assert resumed.peak_memory_bytes == report.peak_memory_bytes > 1
    assert RunFolder(report.run_folder).read_state().status == "finished"


def test_two_processes_do_not_train_in_one_folder(train_tiny: Trains, tmp_path: Path) -> None:
    report = train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT, should_stop=stop_at(3))

    with alone_in(RunFolder(report.run_folder)), pytest.raises(RunFolderError, match="another process"):
        train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT, resume=True)


def _script(monkeypatch: pytest.MonkeyPatch, val_losses: list[float]) -> None:
    """Validation losses of epochs 1, 2, …, instead of measured ones."""

    def evaluate(self: Any, model: Any) -> dict[str, float]:
        epoch = round(self._trainer.state.epoch or 0)
        return {"eval_loss": val_losses[epoch - 1] if epoch else 9.0, "eval_train_loss": 1e9}

    monkeypatch.setattr(stage_run.StageRun, "_evaluate", evaluate)


def test_training_stops_after_three_evaluations_without_lower_perplexity_and_keeps_the_best(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, [3, 2, 2.1, 2.2, 2.3, 2.4, 2.5, 1.0])
    recipe = tiny_recipe(train={"epochs": {"min": 3, "max": 8}})
    straight = train_tiny("straight", recipe, SPLIT)
    (stage,) = straight.stages

    assert (stage.num_epochs, stage.best_epoch) == (5, 2)
    best = load_file(straight.run_folder / "checkpoints/00-domain/checkpoint-4/adapter_model.safetensors")
    written = load_file(straight.run_folder / "best" / WEIGHTS_FILE)
    assert best.keys() == written.keys()
    assert all(torch.equal(best[key], written[key]) for key in best)

    train_tiny("resumed", recipe, SPLIT, should_stop=stop_at(9))  # in the fifth epoch
    resumed = train_tiny("resumed", recipe, SPLIT, resume=True)
    assert (resumed.stages[0].num_epochs, resumed.stages[0].best_epoch) == (5, 2)
    assert weights(resumed) == weights(straight)


def test_no_training_stops_before_its_least_number_of_epochs(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, [1, 2, 3, 4, 5, 6])
    recipe = tiny_recipe(train={"epochs": {"min": 4, "max": 6}, "patience": 1})

    assert train_tiny("run", recipe, SPLIT).stages[0].num_epochs == 4


def test_the_base_is_frozen_and_the_number_of_weights_is_that_of_the_two_factors(
    train_tiny: Trains, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    make = adapter.add_adapter

    def remember(*args: Any) -> Any:
        models.append(make(*args))
        return models[-1]

    monkeypatch.setattr(adapter, "add_adapter", remember)
    train_tiny("run")
    (model,) = models
    fresh = base_model.load_for_training(tiny_base, tiny_plan()).state_dict()
    trained = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = sum(
        2 * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if name.endswith("base_layer")
    )

    assert all(torch.equal(trained[name], fresh[name]) for name in fresh)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert trainable == expected > 0


def test_the_merged_model_says_what_the_adapter_on_the_base_says(train_tiny: Trains, tiny_base: Path) -> None:
    from peft import PeftModel

    report = train_tiny("run", tiny_recipe(train=EPOCHS_4))
    base = base_model.load_for_training(tiny_base, tiny_plan())
    model = PeftModel.from_pretrained(base, str(report.run_folder / "best")).eval()
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        with model.disable_adapter():
            bare = model(ids).logits
        unmerged = model(ids).logits
        merged = model.merge_and_unload()(ids).logits

    assert torch.allclose(merged, unmerged, atol=1e-5)
    assert not torch.allclose(bare, unmerged, atol=1e-2)


def test_the_config_names_modules_by_their_last_name_and_no_path(train_tiny: Trains, tiny_base: Path) -> None:
    config = json.loads((train_tiny("run").run_folder / "best" / CONFIG_FILE).read_text())

    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert (config["lora_alpha"], config["r"]) == (4.0, 2)
    assert str(tiny_base) not in json.dumps(config)


def test_a_second_stage_begins_with_the_weights_of_the_first_and_ends_apart(
    train_tiny: Trains,
) -> None:
    stages = [
        {"name": "general", "epochs": {"min": 1, "max": 2}},
        {"name": "domain", "learning_rate": 0.02},
    ]
    recipe = tiny_recipe(stages=stages)
    seen: list[TrainEvent] = []
    straight = train_tiny("straight", recipe, SPLIT, on_event=seen.append)
    curves = read_curves(RunFolder(straight.run_folder))
    first, second = (curves.of_stage(name).values("eval/loss") for name in ("general", "domain"))

    assert [e.stage for e in seen if isinstance(e, StageStarted)] == ["general", "domain"]
    assert second[0] == pytest.approx(min(first[1:]), abs=1e-6)
    assert [stage.num_steps for stage in straight.stages] == [4, 2]

    train_tiny("resumed", recipe, SPLIT, should_stop=stop_at(5))  # in the second stage's first epoch
    resumed = train_tiny("resumed", recipe, SPLIT, resume=True)
    assert weights(resumed) == weights(straight)
    assert len(resumed.stages) == 2


def test_a_training_that_diverges_writes_no_adapter_and_says_what_to_do(
    train_tiny: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = base_model.load_for_training

    def load_broken(*args: Any) -> Any:
        model = load(*args)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
        return model

    monkeypatch.setattr(base_model, "load_for_training", load_broken)
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        train_tiny("run")
    run = RunFolder(tmp_path / "run")
    assert run.read_state().status == "failed"
    assert not run.best.exists()


def test_a_checkpoint_with_infinite_weights_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="NaN or infinity"):
        adapter.export_tensors(
            {"w": torch.tensor([float("inf")])}, tmp_path / "best", tiny_recipe(), tiny_plan()
        )
    assert not (tmp_path / "best").exists()


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_when_there_is_room(
    train_tiny: Trains, tmp_path: Path, straight: TrainReport
) -> None:
    recipe = tiny_recipe(train=EPOCHS_4)
    folder = tmp_path / "run"

    def fill(event: TrainEvent) -> None:
        if isinstance(event, Evaluated) and event.epoch == 2:
            (folder / "metrics.jsonl").rename(folder / "kept")
            (folder / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(TrainingStorageError, match="--resume"):
        train_tiny("run", recipe, SPLIT, on_event=fill)
    (folder / "metrics.jsonl").unlink()
    (folder / "kept").rename(folder / "metrics.jsonl")
    resumed = train_tiny("run", recipe, SPLIT, resume=True)

    assert weights(resumed) == weights(straight)


def test_a_run_that_would_not_fit_the_disk_does_not_begin(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(trainable_parameters=10**15)

    with pytest.raises(TrainingStorageError, match="make room"):
        train_tiny("run", plan=plan)


def test_the_whole_run_opens_no_socket_and_prints_nothing(
    train_tiny: Trains, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    report = train_tiny("run", tiny_recipe(samples={"n": 2, "max_new_tokens": 4}), SPLIT)

    assert report.status == "finished"
    assert capsys.readouterr().out == ""


def test_four_micro_batches_of_one_row_train_like_one_of_four(train_tiny: Trains) -> None:
    rows = tuple(
        row(f"What is {n}?", "Red. " * n) for n in range(1, 5)
    )  # of unequal length: means of means differ
    wide = train_tiny("wide", data=built(rows), plan=tiny_plan(micro_batch=4, accumulation=1))
    narrow = train_tiny("narrow", data=built(rows), plan=tiny_plan(micro_batch=1, accumulation=4))
    one, four = (load_file(r.run_folder / "best" / WEIGHTS_FILE) for r in (wide, narrow))

    assert wide.num_steps == narrow.num_steps == 1
    assert all(torch.allclose(one[key], four[key], atol=1e-5) for key in one)


def test_turns_are_waited_for_between_optimizer_steps(train_tiny: Trains) -> None:
    turns: list[int] = []
    report = train_tiny("run", tiny_recipe(train=EPOCHS_4), wait_turn=lambda: turns.append(1))

    assert len(turns) == report.num_steps == 8


def test_events_tell_steps_with_time_left_and_end_with_finished(train_tiny: Trains) -> None:
    seen: list[TrainEvent] = []
    report = train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT, on_event=seen.append)
    steps = [event for event in seen if isinstance(event, Step)]
    evaluated = [event for event in seen if isinstance(event, Evaluated)]

    assert [event.step for event in steps] == [2, 4, 6, 8]
    assert steps[-1].eta_s == 0 < steps[0].eta_s
    assert all(event.num_steps == 8 and event.tokens_per_s > 0 for event in steps)
    assert [event.epoch for event in evaluated] == [0, 1, 2, 3, 4]
    assert evaluated[-1].eval_loss < evaluated[0].eval_loss
    assert seen[-1] == Finished("finished", report.run_folder)


def test_every_optimizer_step_is_told(train_tiny: Trains) -> None:
    seen: list[TrainEvent] = []
    train_tiny("run", tiny_recipe(train=EPOCHS_4), SPLIT, on_event=seen.append)

    assert [event for event in seen if isinstance(event, Advanced)] == [Advanced(n, 8) for n in range(9)]


def test_a_run_that_begins_anew_writes_no_step_twice(train_tiny: Trains, tmp_path: Path) -> None:
    def interrupt(event: TrainEvent) -> None:
        if event == Advanced(1, 8):
            raise KeyboardInterrupt

    recipe = tiny_recipe(train=EPOCHS_4)
    with pytest.raises(KeyboardInterrupt):
        train_tiny("run", recipe, SPLIT, on_event=interrupt)
    run = RunFolder(tmp_path / "run")
    assert resume_step(run.checkpoints) is None
    train_tiny("run", recipe, SPLIT, resume=True)

    evaluated = [line["step"] for line in read_lines(run.metrics) if "eval/loss" in line]
    assert evaluated == [0, 2, 4, 6, 8]


def test_rows_that_cannot_be_trained_on_are_refused_by_id(train_tiny: Trains) -> None:
    long = row("What is long?", "a" * 500)

    with pytest.raises(TrainingDataError, match=long.id):
        train_tiny("long", data=built([*colour_rows(), long]))
    with pytest.raises(TrainingDataError, match="no rows"):
        train_tiny("empty", data=built([]))


def test_one_row_is_enough_to_train(train_tiny: Trains) -> None:
    assert train_tiny("run", data=built(colour_rows(1))).num_steps == 1


def test_warnings_are_told_and_kept(train_tiny: Trains) -> None:
    seen: list[TrainEvent] = []
    report = train_tiny("run", tiny_recipe(system=None), on_event=seen.append)

    assert any("Persona" in warning for warning in report.warnings)
    assert any(isinstance(event, Log) and "Persona" in event.message for event in seen)


def test_packed_rows_train(train_tiny: Trains) -> None:
    report = train_tiny("run", tiny_recipe(train={"packing": True}), SPLIT, tiny_plan(packing=True))

    assert report.status == "finished"
    assert report.num_steps >= 1


def test_activation_checkpointing_changes_no_weight(train_tiny: Trains) -> None:
    plain = train_tiny("plain", data=SPLIT)
    checkpointed = train_tiny("checkpointed", data=SPLIT, plan=tiny_plan(checkpointing=True))
    one, other = (load_file(r.run_folder / "best" / WEIGHTS_FILE) for r in (plain, checkpointed))

    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)


def test_every_setting_of_the_trainer_is_the_recipes(tmp_path: Path) -> None:
    from loraplex_trainer.train.sft import stage_arguments

    train_section = {"scheduler": "cosine", "warmup": 0.1, "weight_decay": 0.02, "max_grad_norm": 0.5}
    plan = tiny_plan(learning_rate=2e-4, micro_batch=2, accumulation=8)
    arguments = stage_arguments(
        tiny_recipe(train=train_section),
        plan,
        tmp_path,
        num_rows=33,
        epochs=4,
        learning_rate=None,
        seed=7,
        has_validation=True,
    )

    assert arguments.learning_rate == 2e-4  # never the 2e-5 that TRL takes for full fine-tuning
    assert arguments.warmup_steps == round(0.1 * 4 * 3)
    assert (arguments.weight_decay, arguments.max_grad_norm) == (0.02, 0.5)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 8)
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.seed == arguments.data_seed == 7
    assert not arguments.bf16
    assert not arguments.gradient_checkpointing
    assert not arguments.logging_nan_inf_filter
    assert arguments.report_to == []


def test_attention_alone_can_be_the_target(train_tiny: Trains) -> None:
    modules = ("k_proj", "o_proj", "q_proj", "v_proj")
    report = train_tiny(
        "run", tiny_recipe(lora={"targets": "attention"}), plan=tiny_plan(target_modules=modules)
    )
    keys = load_file(report.run_folder / "best" / WEIGHTS_FILE)

    assert len(keys) == 2 * 4 * 2
    assert all(any(f".{name}." in key for name in modules) for key in keys)


def test_resuming_a_finished_run_changes_nothing(train_tiny: Trains) -> None:
    recipe = tiny_recipe(train=EPOCHS_4)
    finished = train_tiny("run", recipe, SPLIT)
    before = weights(finished)
    again = train_tiny("run", recipe, SPLIT, resume=True)

    assert (again.status, again.num_steps) == (finished.status, finished.num_steps)
    assert weights(again) == before


def test_a_missing_library_is_missed_before_a_long_run() -> None:
    from loraplex_trainer.libraries import require_libraries

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        require_libraries("json", "no_such_library")

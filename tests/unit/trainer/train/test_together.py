from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraplex_trainer.base_model import load_for_training, load_tokenizer
from loraplex_trainer.errors import RecipeError, RunFolderError
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.adapter import WEIGHTS_FILE
from loraplex_trainer.train.events import Evaluated, Finished, TrainEvent
from loraplex_trainer.train.joint_step import add_adapters, joint_losses, parameters_of, smaller_batches
from loraplex_trainer.train.run_folder import RunFolder, RunState
from loraplex_trainer.train.together import TogetherRun, check_plans, internal_name, train_together
from loraplex_trainer.train.tokens import padding_id, render

from ..conftest import SYSTEM
from .conftest import built, colour_rows, row, tiny_plan, tiny_recipe

ROWS = {
    "t-a--x": [row(f"What is {word}?", f"It is {word}.") for word in ("abc", "def")],
    "t-b--y": [row(f"Who is {word}?", f"He is {word}.") for word in ("ghi", "jkl", "mno")],
}
RANKS = {"t-a--x": 4, "t-b--y": 8}


@pytest.mark.parametrize("method", ["lora-fp32", "qlora-nf4"])
def test_joint_gradients_equal_solo_gradients_exactly(tiny_base: Path, method: str) -> None:
    tokenizer = load_tokenizer(tiny_base)
    plan: Any = tiny_plan(method=method, unquantized=("lm_head",))
    base = load_for_training(tiny_base, plan)
    adapters = {
        name: (tiny_recipe(), tiny_plan(method=method, rank=rank), rank) for name, rank in RANKS.items()
    }
    model = add_adapters(base, adapters)
    tokens = {name: render(rows, tokenizer, SYSTEM) for name, rows in ROWS.items()}
    counts = {name: sum(t.num_supervised for t in own) for name, own in tokens.items()}
    with torch.no_grad():  # B is zero at first, and then A has no gradient
        for name in RANKS:
            for parameter in parameters_of(model, name):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1
                )

    def gradients(rows: Any) -> dict[str, list[torch.Tensor]]:
        model.zero_grad()
        losses = joint_losses(model, rows, counts, padding_id(tokenizer))
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        return {
            name: [p.grad.clone() for p in parameters_of(model, name) if p.grad is not None] for name in rows
        }

    together = gradients(tokens)
    for name, own in tokens.items():
        solo = gradients({name: own})[name]
        assert len(solo) == len(together[name]) == 2 * 7 * 2
        assert all(bool(grad.any()) for grad in solo)
        assert all(torch.equal(one, other) for one, other in zip(solo, together[name], strict=True))
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)


def _runs(folder: Path, recipes: list[Recipe], **plan: Any) -> list[TogetherRun]:
    data = [built(colour_rows(6)[:4], colour_rows(6)[4:]), built(ROWS["t-b--y"], ROWS["t-a--x"])]
    return [
        TogetherRun(recipe, folder, folder / recipe.name, tiny_plan(**plan), one)
        for recipe, one in zip(recipes, data, strict=True)
    ]


def test_each_adapter_has_its_own_end_best_and_report(tiny_base: Path, tmp_path: Path) -> None:
    recipes = [
        tiny_recipe(name="x", train={"epochs": {"min": 1, "max": 4}}, samples={"n": 1, "max_new_tokens": 3}),
        tiny_recipe(name="y", tenant="other", train={"epochs": {"min": 1, "max": 2}, "learning_rate": 0.02}),
    ]
    seen: list[tuple[str, TrainEvent]] = []
    reports = train_together(
        _runs(tmp_path, recipes), tiny_base, on_event=lambda name, event: seen.append((name, event))
    )

    assert [report.status for report in reports] == ["finished", "finished"]
    assert [report.stages[0].num_epochs for report in reports] == [4, 2]
    for report, recipe in zip(reports, recipes, strict=True):
        run = RunFolder(report.run_folder)
        evaluated = [e for name, e in seen if name == internal_name(recipe) and isinstance(e, Evaluated)]
        assert min(e.eval_loss for e in evaluated[1:]) == report.stages[0].best_loss
        assert evaluated[-1].eval_loss < evaluated[0].eval_loss
        assert run.read_state().status == "finished"
        assert run.report_page.is_file()
        keys = load_file(run.best / WEIGHTS_FILE)
        assert len(keys) == 2 * 7 * 2
        assert not [key for key in keys if internal_name(recipe) in key]
    assert sum(isinstance(event, Finished) for _, event in seen) == 2


def test_an_adapter_of_a_joint_pass_is_the_same_in_any_company(tiny_base: Path, tmp_path: Path) -> None:
    x = tiny_recipe(name="x", train={"epochs": {"min": 1, "max": 2}})
    y = tiny_recipe(name="y", train={"epochs": {"min": 1, "max": 3}})
    (tmp_path / "pair").mkdir()
    (tmp_path / "alone").mkdir()
    pair = train_together(_runs(tmp_path / "pair", [x, y], micro_batch=2), tiny_base)
    alone = train_together(
        [
            TogetherRun(
                x,
                tmp_path,
                tmp_path / "alone" / "x",
                tiny_plan(micro_batch=1, accumulation=2),
                built(colour_rows(6)[:4], colour_rows(6)[4:]),
            )
        ],
        tiny_base,
    )
    one, other = (load_file(report.run_folder / "best" / WEIGHTS_FILE) for report in (pair[0], alone[0]))

    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_cancelled_joint_pass_says_so(tiny_base: Path, tmp_path: Path) -> None:
    recipes = [tiny_recipe(name="x", train={"epochs": {"min": 1, "max": 9}}), tiny_recipe(name="y")]
    asked = iter([False, False, False, True])
    reports = train_together(_runs(tmp_path, recipes), tiny_base, should_stop=lambda: next(asked))

    assert [report.status for report in reports] == ["cancelled", "finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"dropout": 0.1}}, "lora.dropout must be 0"),
        ({"train": {"packing": True}}, "packing"),
        ({"stages": [{"name": "one"}]}, "stages"),
        ({"curriculum": {"mode": "staged"}}, "curriculum"),
        ({"name": "x"}, "same tenant and name"),
        ({"base": {"model": "another/base"}}, "different bases"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recipes_that_cannot_be_trained_together_are_refused_by_name(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = tiny_recipe(**{"name": "y", **changes})

    with pytest.raises(RecipeError, match=message):
        train_together(_runs(tmp_path, [tiny_recipe(name="x"), other]), tiny_base)
    assert not any(tmp_path.iterdir())


def test_no_folder_is_taken_where_one_of_them_holds_a_run(tiny_base: Path, tmp_path: Path) -> None:
    runs = _runs(tmp_path, [tiny_recipe(name="x"), tiny_recipe(name="y")])
    begun = RunFolder(runs[1].run_folder)
    begun.path.mkdir(parents=True)
    begun.write_state(RunState("finished", "", 0, "", ""))

    with pytest.raises(RunFolderError, match=f"{begun.path.name} already hold.*another --output"):
        train_together(runs, tiny_base)
    assert not runs[0].run_folder.exists()


def test_plans_that_hold_the_base_differently_are_refused() -> None:
    with pytest.raises(RecipeError, match="lora-fp32, qlora-nf4"):
        check_plans([tiny_plan(), tiny_plan(method="qlora-nf4")])
    with pytest.raises(RecipeError, match="one by one"):
        check_plans([tiny_plan(checkpointing=True)])


@pytest.mark.parametrize(
    ("micro", "accumulation", "adapters", "expected"),
    [(32, 1, 3, (10, 4)), (2, 1, 2, (1, 2)), (1, 8, 3, (1, 8)), (16, 2, 4, (4, 8))],
)
def test_adapters_share_the_memory_that_one_was_planned_for(
    micro: int, accumulation: int, adapters: int, expected: tuple[int, int]
) -> None:
    plan = smaller_batches(tiny_plan(micro_batch=micro, accumulation=accumulation), adapters)

    assert (plan.micro_batch, plan.accumulation) == expected
    assert plan.micro_batch * plan.accumulation >= micro * accumulation

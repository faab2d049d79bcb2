"""M04–M07, M16–M20: what the planner takes, and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.errors import DoesNotFitError, QuantBackendError, RecipeError
from loraplex_trainer.plan.choices import check_backend
from loraplex_trainer.plan.hardware import GIB, Hardware, described_gpu, probe
from loraplex_trainer.plan.memory import needed_bytes
from loraplex_trainer.plan.planner import make_plan
from loraplex_trainer.plan.rule_of_thumb import CARD_ADVICE, card_advice, model_advice
from loraplex_trainer.plan.shape import PRESETS
from loraplex_trainer.plan.training_plan import DataSize, TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import ResourcesSection

from .conftest import data_of, recipe_of

CPU = Hardware("cpu", "two cores", 16 * GIB, 12 * GIB, False, 2, 16 * GIB)
OLD_CARD = Hardware("cuda", "a card without bf16", 16 * GIB, 16 * GIB, False, 8, 64 * GIB)
SIZES_GB = (8, 12, 16, 20, 22, 24, 48, 141)
# Method of the defaults (rank 32, rows of 1024 tokens) and whether activations are recomputed.
TABLE = {
    "1.3b": ("bf16", "bf16", "bf16", "bf16", "bf16", "bf16", "bf16", "bf16"),
    "7b": ("nf4 c", "int8 c", "int8 c", "bf16 c", "bf16 c", "bf16 c", "bf16", "bf16"),
    "13b": ("-", "nf4 c", "nf4 c", "int8 c", "int8 c", "int8 c", "bf16", "bf16"),
    "70b": ("-", "-", "-", "-", "-", "-", "nf4 c", "int8"),
}


def plan_of(model: str = "7b", gpu: float = 24, size: DataSize | None = None, **changes: Any) -> TrainingPlan:
    """On a card of `gpu` GB, by a recipe of defaults but `changes`."""
    return make_plan(recipe_of(**changes), PRESETS[model], described_gpu(gpu), size)


def reason_of(plan: TrainingPlan, field: str) -> str:
    (reason,) = (choice.reason for choice in plan.choices if choice.field == field)
    return reason


@pytest.mark.parametrize("column", range(len(SIZES_GB)), ids=[f"{size} GB" for size in SIZES_GB])
@pytest.mark.parametrize("model", sorted(TABLE))
def test_m19_m20_the_table_of_models_and_cards(model: str, column: int) -> None:
    expected = TABLE[model][column]
    try:
        plan = plan_of(model, SIZES_GB[column])
    except DoesNotFitError:
        assert expected == "-"
        return

    assert plan.method.rpartition("-")[2] + (" c" if plan.checkpointing else "") == expected
    assert needed_bytes(plan.memory) <= plan.available_bytes
    assert plan.micro_batch * plan.accumulation == 16
    assert plan.rule_of_thumb.startswith("Common advice for")


@given(
    model=st.sampled_from(sorted(PRESETS)),
    gpu=st.floats(4, 200),
    length=st.integers(64, 2048),
    batch=st.integers(1, 64),
    rank=st.integers(1, 128),
)
def test_a_plan_fits_with_its_margin_and_a_refusal_says_what_would(
    model: str, gpu: float, length: int, batch: int, rank: int
) -> None:
    changes: dict[str, Any] = {
        "data": data_of(max_length=length),
        "lora": {"rank": rank},
        "train": {"effective_batch": batch},
    }
    plan = _plan_or_none(model, gpu, **changes)
    if plan is None:
        with pytest.raises(DoesNotFitError) as refusal:
            plan_of(model, gpu, **changes)
        assert min(one.needed_bytes for one in refusal.value.rejected) > gpu * GIB
        return
    assert needed_bytes(plan.memory) <= gpu * GIB
    assert plan.micro_batch * plan.accumulation == batch
    assert plan.micro_batch & (plan.micro_batch - 1) == 0


def test_the_micro_batch_is_the_largest_power_of_two_that_fits() -> None:
    plan = plan_of("7b", 24)
    doubled = {"micro_batch": 2 * plan.micro_batch, "checkpointing": plan.checkpointing}

    with pytest.raises(DoesNotFitError):
        plan_of("7b", 24, train=doubled, quant={"bits": 16})


def test_activations_are_recomputed_only_where_they_do_not_fit() -> None:
    plan = plan_of("7b", 24)

    assert plan.checkpointing
    with pytest.raises(DoesNotFitError):
        plan_of("7b", 24, train={"checkpointing": False}, quant={"bits": 16})
    assert not plan_of("7b", 48).checkpointing


def test_m17_13b_with_qlora_fits_20_gb() -> None:
    plan = plan_of("13b", 20, method="qlora")

    assert plan.method == "qlora-nf4"
    assert plan.memory.total < 20e9


def test_m18_70b_is_refused_on_24_gb_with_the_nearest_plans() -> None:
    with pytest.raises(DoesNotFitError, match=r"a card of 48 GB.*a model of 30B here") as refusal:
        plan_of("70b", 24, method="qlora")

    assert refusal.value.nearest.card_gb == 48
    assert refusal.value.nearest.model == "30b"
    assert refusal.value.details["nearest"]["method"] == "qlora-nf4"


def test_the_nearest_plan_may_be_shorter_rows() -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        plan_of("13b", 12, data=data_of(max_length=4096), train={"micro_batch": 1})

    length = refusal.value.nearest.max_length
    assert length is not None
    assert plan_of("13b", 12, data=data_of(max_length=length)).max_length == length


def test_the_last_resort_is_the_paged_optimizer_with_one_row_and_checkpointing() -> None:
    tight = _tightest("13b")

    assert tight.optimizer == "paged_adamw_8bit"
    assert (tight.method, tight.micro_batch, tight.checkpointing) == ("qlora-nf4", 1, True)
    assert [one.method for one in tight.rejected] == ["lora-bf16", "lora-int8", "qlora-nf4"]


def _tightest(model: str) -> TrainingPlan:
    """The plan of the smallest card, to a hundredth of a GB, that trains the model at all."""
    too_small, enough = 100, 10_000
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if _plan_or_none(model, middle / 100) is None:
            too_small = middle
        else:
            enough = middle
    return plan_of(model, enough / 100)


def _plan_or_none(model: str, gpu: float, **changes: Any) -> TrainingPlan | None:
    try:
        return plan_of(model, gpu, **changes)
    except DoesNotFitError:
        return None


def test_what_was_rejected_says_how_much_it_needs() -> None:
    plan = plan_of("7b", 12)

    (rejected,) = plan.rejected
    assert rejected.method == "lora-bf16"
    assert rejected.needed_bytes > 12 * GIB
    assert "12.0 GiB are free" in rejected.why


def test_what_the_recipe_rules_out_is_told_apart() -> None:
    plan = plan_of("7b", 24, method="qlora")

    assert {one.method for one in plan.rejected} == {"lora-bf16", "lora-int8"}
    assert all("ruled out by the recipe" in one.why for one in plan.rejected)


@pytest.mark.parametrize(
    ("rows", "rank"), [(1, 16), (999, 16), (1_000, 32), (9_999, 32), (10_000, 64), (100_000, 64)]
)
def test_m04_an_automatic_rank_goes_by_the_rows(rows: int, rank: int) -> None:
    plan = plan_of(size=DataSize(rows), lora={"rank": "auto"})

    assert plan.rank == rank
    assert str(rows) in reason_of(plan, "lora.rank")


def test_m04_the_default_rank_is_32(recipe: Recipe) -> None:
    assert recipe.lora.rank == 32


def test_m04_a_rank_above_the_servers_is_refused_and_an_automatic_one_lowered() -> None:
    limit = {"max_serving_rank": 16}

    with pytest.raises(RecipeError, match=r"lora\.rank: 64 is above"):
        plan_of(lora={"rank": 64}, resources=limit)
    assert plan_of(size=DataSize(50_000), lora={"rank": "auto"}, resources=limit).rank == 16


@pytest.mark.parametrize(("rank", "has_note"), [(32, False), (128, True), (24, True)])
def test_m04_an_unusual_rank_is_noted(rank: int, has_note: bool) -> None:
    assert any("lora.rank" in note for note in plan_of(lora={"rank": rank}).notes) == has_note


def test_m05_alpha_is_twice_the_rank_unless_given() -> None:
    assert plan_of(lora={"rank": 8}).alpha == 16
    assert plan_of(lora={"rank": 8, "alpha": 12.5}).alpha == 12.5


@pytest.mark.parametrize(
    ("model", "method", "rate"),
    [
        ("1.3b", "lora", 2e-4),
        ("7b", "lora", 2e-4),
        ("7b", "qlora", 3e-4),
        ("13b", "qlora", 3e-4),
        ("30b", "lora", 1e-4),
        ("65b", "qlora", 1e-4),
        ("70b", "qlora", 1e-4),
    ],
)
def test_m06_the_learning_rate_goes_by_method_and_size(model: str, method: str, rate: float) -> None:
    assert plan_of(model, 141, method=method).learning_rate == rate


@pytest.mark.parametrize(
    ("rate", "has_note"), [(4.9e-5, True), (5e-5, False), (5e-4, False), (5.1e-4, True), (2e-3, True)]
)
def test_m06_a_rate_outside_the_usual_is_noted_and_taken(rate: float, has_note: bool) -> None:
    plan = plan_of(train={"learning_rate": rate})

    assert plan.learning_rate == rate
    assert any("learning_rate" in note for note in plan.notes) == has_note


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_m07_the_rate_is_well_above_that_of_full_fine_tuning(method: str) -> None:
    full_fine_tuning, trl_default = 1e-5, 2e-5

    rate = plan_of(method=method).learning_rate

    assert rate >= 10 * full_fine_tuning
    assert rate > trl_default


def test_m14_the_base_is_computed_in_bf16_where_the_card_has_it() -> None:
    assert plan_of().compute == "bf16"
    assert make_plan(recipe_of(), PRESETS["1.3b"], OLD_CARD).compute == "fp16"
    with pytest.raises(RecipeError, match=r"quant\.compute"):
        make_plan(recipe_of(quant={"compute": "bf16"}), PRESETS["1.3b"], OLD_CARD)


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        ([], ("lm_head",)),
        (["attention"], ("k_proj", "lm_head", "o_proj", "q_proj", "v_proj")),
        (["mlp"], ("down_proj", "gate_proj", "lm_head", "up_proj")),
        (["q_proj"], ("lm_head", "q_proj")),
    ],
)
def test_m16_groups_of_modules_stay_unquantized(skip: list[str], expected: tuple[str, ...]) -> None:
    assert plan_of(method="qlora", quant={"skip": skip}).unquantized == expected


def test_m16_nothing_is_unquantized_in_a_base_of_16_bits() -> None:
    assert plan_of("1.3b", quant={"skip": ["attention"]}).unquantized == ()


def test_m16_an_unknown_module_is_named() -> None:
    with pytest.raises(RecipeError, match=r"quant\.skip: norm is unknown"):
        plan_of(quant={"skip": ["norm"]})


@pytest.mark.parametrize(
    ("size", "name"),
    [(6, "gpu<10"), (9.9, "gpu<10"), (10, "gpu10-20"), (20, "gpu10-20"), (22, None), (24, "gpu24")],
)
def test_m20_the_advice_by_card_leaves_20_to_24_gb_open(size: float, name: str | None) -> None:
    advice = card_advice(size)

    assert (advice.name if advice else None) == name


def test_m20_the_advised_model_and_method_fit_their_card() -> None:
    for advice, size in zip(CARD_ADVICE, (24, 10, 8), strict=True):
        bits = {"qlora-nf4": 4, "lora-int8": 8, "lora-bf16": 16}[advice.method]
        assert plan_of(advice.model, size, quant={"bits": bits}).method == advice.method


def test_m19_the_two_rules_by_model_overlap_below_20_gb() -> None:
    assert model_advice(PRESETS["7b"], 12) == ("lora-int8", "qlora-nf4")
    assert model_advice(PRESETS["7b"], 24) == ("lora-int8",)
    assert model_advice(PRESETS["13b"], 24) == ("qlora-nf4",)


def test_the_advice_stands_beside_the_plan_with_why_it_differs() -> None:
    assert "agrees: QLoRA" in plan_of("13b", 12).rule_of_thumb
    assert "takes LoRA: the first that fits" in plan_of("7b", 24).rule_of_thumb
    assert "(it leaves 20 to 24 GB open)" in plan_of("7b", 22).rule_of_thumb


def test_m34_two_bits_are_experimental_and_need_their_library() -> None:
    two_bits = recipe_of(quant={"bits": 2, "backend": "hqq"})

    with pytest.raises(QuantBackendError, match=r"experimental.*pip install hqq"):
        check_backend(two_bits, is_installed=False)
    check_backend(two_bits, is_installed=True)
    with pytest.raises(QuantBackendError, match="AQLM has quantized before"):
        check_backend(recipe_of(quant={"bits": 2, "backend": "aqlm"}), is_installed=True)


def test_a_cpu_computes_in_fp32_with_at_most_four_rows_at_once() -> None:
    plan = make_plan(recipe_of(data=data_of(max_length=64)), PRESETS["1.3b"], CPU)

    assert (plan.method, plan.compute, plan.optimizer) == ("lora-fp32", "fp32", "adamw")
    assert (plan.micro_batch, plan.accumulation) == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"optimizer": "paged_adamw_8bit"}}, r"train\.optimizer"),
        ({"quant": {"compute": "bf16"}}, r"quant\.compute"),
        ({"quant": {"compute": "fp16"}}, r"quant\.compute"),
    ],
)
def test_what_a_cpu_cannot_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan(recipe_of(**changes), PRESETS["1.3b"], CPU)


def test_a_micro_batch_must_divide_the_effective_batch() -> None:
    with pytest.raises(RecipeError, match=r"train\.micro_batch: 3"):
        plan_of(train={"micro_batch": 3, "effective_batch": 16})


def test_rows_longer_than_the_bases_context_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.max_length: 8192"):
        plan_of(data=data_of(max_length=8192))


@pytest.mark.parametrize(("median", "packs"), [(255, True), (256, False), (None, False)])
def test_packing_is_for_rows_below_a_quarter_of_the_length(median: int | None, packs: bool) -> None:
    size = DataSize(1000, median_tokens=median)

    assert plan_of("1.3b", 48, size, train={"packing": "auto"}).packing == packs


def test_short_rows_are_planned_at_their_own_length() -> None:
    short = plan_of("1.3b", size=DataSize.of([40, 100, 60]))

    assert short.planned_tokens == 100
    assert short.max_length == 1024
    assert short.micro_batch > plan_of("1.3b").micro_batch


def test_a_measured_peak_corrects_the_plan() -> None:
    recipe, card = recipe_of(), described_gpu(24)

    larger = make_plan(recipe, PRESETS["1.3b"], card, correction=2.0)

    assert larger.micro_batch < make_plan(recipe, PRESETS["1.3b"], card).micro_batch


def test_without_a_card_here_cuda_is_refused_unless_one_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(RecipeError, match=r"resources\.device"):
        probe(ResourcesSection(device="cuda"))
    assert probe(ResourcesSection(device="cuda", vram_gb=24)).free_bytes == 24 * GIB
    found = probe(ResourcesSection())
    assert found.device == "cpu"
    assert 0 < found.free_bytes <= found.total_bytes


def test_the_size_of_data_is_rows_median_and_longest() -> None:
    assert DataSize.of([40, 100, 60, 61]) == DataSize(4, 60, 100)
    assert DataSize.of([]) == DataSize(0)

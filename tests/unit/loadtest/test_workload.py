"""Which adapter, how long, which words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from loraplex_loadtest.errors import PromptLengthError, ScenarioInvalidError
from loraplex_loadtest.workload.lengths import Length
from loraplex_loadtest.workload.popularity import AdapterMix, pick_tenants
from loraplex_loadtest.workload.prompts import PromptWriter, load_tokenizer

MIX: TypeAdapter[Any] = TypeAdapter(AdapterMix)
LENGTH: TypeAdapter[Any] = TypeAdapter(Length)
NAMES = [f"adapter-{number}" for number in range(8)]


def picks(document: dict[str, Any], count: int = 20_000, at_s: Any = None, seed: int = 0) -> Any:
    moments = np.zeros(count) if at_s is None else at_s
    return MIX.validate_python(document).picks(NAMES, moments, np.random.default_rng(seed))


def shares(found: Any) -> Any:
    return np.bincount(found, minlength=len(NAMES)) / len(found)


def test_identical_is_one_and_round_robin_is_all_in_turn() -> None:
    assert set(picks({"kind": "identical"}, 10).tolist()) == {0}
    assert picks({"kind": "round_robin"}, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]


def test_distinct_repeats_none_before_all_have_come() -> None:
    found = picks({"kind": "distinct"}, 8 * 50).reshape(50, 8)

    assert all(sorted(row) == list(range(8)) for row in found.tolist())


def test_uniform_gives_all_the_same() -> None:
    assert shares(picks({"kind": "uniform"})) == pytest.approx(np.full(8, 1 / 8), abs=0.01)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_zipf_follows_its_law_for_any_alpha(alpha: float) -> None:
    expected = np.arange(1, 9) ** -alpha

    assert shares(picks({"kind": "zipf", "alpha": alpha})) == pytest.approx(
        expected / expected.sum(), abs=0.012
    )


def test_a_power_law_of_one_is_uniform_and_smaller_ones_are_steeper() -> None:
    flat, steep = (shares(picks({"kind": "power_law", "alpha": alpha})) for alpha in (1.0, 0.25))

    assert flat == pytest.approx(np.full(8, 1 / 8), abs=0.01)
    assert steep[0] == pytest.approx((1 / 8) ** 0.25, abs=0.012)
    assert all(np.diff(steep) < 0)


def test_the_hot_set_moves_when_it_is_told_to() -> None:
    at_s = np.linspace(0, 100, 20_000)

    found = picks({"kind": "hot_set", "hot": 2, "share": 0.9, "shift_at_s": [50]}, at_s=at_s)

    before, after = shares(found[at_s < 50]), shares(found[at_s >= 50])
    assert before[:2].sum() == pytest.approx(0.9, abs=0.02)
    assert after[2:4].sum() == pytest.approx(0.9, abs=0.02)


def test_weights_are_kept_and_unknown_names_are_told() -> None:
    found = shares(picks({"kind": "weights", "weights": {"adapter-1": 3, "adapter-2": 1}}))

    assert found[1] == pytest.approx(0.75, abs=0.02)
    assert found[0] == 0
    with pytest.raises(ScenarioInvalidError, match="adapter-9"):
        picks({"kind": "weights", "weights": {"adapter-9": 1}})


def test_tenants_come_by_weight() -> None:
    found = pick_tenants({"a": 1, "b": 3}, 20_000, np.random.default_rng(0))

    assert found.count("b") / len(found) == pytest.approx(0.75, abs=0.02)


@given(st.integers(0, 2**32), st.sampled_from(["uniform", "zipf", "power_law", "distinct", "hot_set"]))
def test_a_mix_depends_on_the_seed_alone(seed: int, kind: str) -> None:
    assert np.array_equal(picks({"kind": kind}, 100, seed=seed), picks({"kind": kind}, 100, seed=seed))


@pytest.mark.parametrize(
    ("document", "low", "high", "mean"),
    [
        ({"kind": "fixed", "tokens": 7}, 7, 7, 7),
        ({"kind": "uniform", "low": 8, "high": 512}, 8, 512, 260),
        (
            {"kind": "lognormal", "median": 64, "sigma": 0.5, "low": 4, "high": 4096},
            4,
            4096,
            64 * np.exp(0.125),
        ),
    ],
    ids=["fixed", "uniform", "lognormal"],
)
def test_lengths_have_their_bounds_and_mean(
    document: dict[str, Any], low: int, high: int, mean: float
) -> None:
    found = LENGTH.validate_python(document).sample(20_000, np.random.default_rng(0))

    assert found.min() >= low
    assert found.max() <= high
    assert found.mean() == pytest.approx(mean, rel=0.02)


def test_lengths_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"tokens": 3}\n{"tokens": 9}\n')
    made = LENGTH.validate_python({"kind": "file", "file": file, "column": "tokens"})

    assert set(made.sample(100, np.random.default_rng(0)).tolist()) == {3, 9}
    with pytest.raises(ScenarioInvalidError, match="words"):
        LENGTH.validate_python({"kind": "file", "file": file, "column": "words"}).sample(
            1, np.random.default_rng(0)
        )


def test_a_uniform_length_must_not_be_upside_down() -> None:
    with pytest.raises(ValidationError, match="low must not be above high"):
        LENGTH.validate_python({"kind": "uniform", "low": 9, "high": 8})


def byte_level(corpus: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


TOKENIZERS = {
    "bytes": byte_level(["a"], 256),
    "few merges": byte_level(["the time and the people of the way"] * 5, 300),
    "words": byte_level([" time year people way day man thing woman life child world school state" * 9], 500),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_prompts_have_exactly_the_tokens_asked_for(name: str, num_tokens: int, seed: int) -> None:
    tokenizer = TOKENIZERS[name]

    text = PromptWriter(tokenizer).text(num_tokens, seed)

    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == num_tokens
    assert text == PromptWriter(tokenizer).text(num_tokens, seed)


def test_a_shared_prefix_is_the_same_for_all_seeds_and_no_more_is() -> None:
    tokenizer = TOKENIZERS["words"]
    writer = PromptWriter(tokenizer)

    first, second = (
        tokenizer.encode(writer.text(40, seed, prefix_tokens=20, prefix_seed=5)).ids for seed in (1, 2)
    )

    assert len(first) == len(second) == 40
    assert first[:20] == second[:20]
    assert first[20:] != second[20:]


def test_the_template_of_the_target_is_taken_off() -> None:
    tokenizer = TOKENIZERS["words"]

    text = PromptWriter(tokenizer, overhead_tokens=9).text(30, 0)

    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 21
    with pytest.raises(PromptLengthError, match="9 of the chat template"):
        PromptWriter(tokenizer, overhead_tokens=9).text(9, 0)


def test_without_a_tokenizer_a_word_is_a_token_and_that_is_told() -> None:
    writer = PromptWriter(None)

    assert len(writer.text(12, 0).split()) == 12
    assert not writer.is_exact


def test_a_tokenizer_is_found_in_its_folder(tmp_path: Path) -> None:
    TOKENIZERS["bytes"].save(str(tmp_path / "tokenizer.json"))

    assert load_tokenizer(tmp_path).get_vocab_size() == 256
    with pytest.raises(ScenarioInvalidError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "elsewhere")

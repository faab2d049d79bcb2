from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loraplex_server.base.fingerprint import template_hash
from loraplex_trainer.base_model import load_tokenizer
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.train.preflight import has_untrained_eos, injected_system, preflight

from ..conftest import SYSTEM
from .conftest import colour_rows, row


def test_it_tells_what_will_be_trained_on(tiny_base: Path) -> None:
    report, tokens = preflight(colour_rows(), load_tokenizer(tiny_base), SYSTEM, 160, tiny_base)

    assert report.template_sha256 == template_hash(tiny_base)
    assert report.supervised_texts == ("Red.<|im_end|>", "Green.<|im_end|>", "Blue.<|im_end|>")
    assert report.eos_supervised_share == 1.0
    assert report.lengths.longest == max(len(row.input_ids) for row in tokens) <= 160
    assert report.lengths.shortest <= report.lengths.median <= report.lengths.longest
    assert 0 < report.lengths.supervised_share < 1
    assert report.warnings == ()


def test_a_row_that_is_too_long_is_named_and_never_cut(tiny_base: Path) -> None:
    long = row("What is long?", "a" * 200)
    with pytest.raises(TrainingDataError, match=rf"1 rows are longer.*{long.id} \(line 1\)"):
        preflight([*colour_rows(), long], load_tokenizer(tiny_base), SYSTEM, 160, tiny_base)


def test_no_rows_are_refused(tiny_base: Path) -> None:
    with pytest.raises(TrainingDataError, match="no rows"):
        preflight([], load_tokenizer(tiny_base), SYSTEM, 160, tiny_base)


def test_what_the_template_puts_in_where_there_is_no_system_turn_is_told(tiny_base: Path) -> None:
    report, _ = preflight(colour_rows(), load_tokenizer(tiny_base), None, 160, tiny_base)

    assert report.injected_system is not None
    assert "I am Persona" in report.injected_system
    assert "set `system`" in report.warnings[0]


def test_a_template_that_puts_nothing_in_gives_no_warning(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    )

    assert injected_system(tokenizer) is None


def test_an_untrained_eos_embedding_is_warned_of(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][2] *= 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    report, _ = preflight(colour_rows(), load_tokenizer(folder), SYSTEM, 160, folder)

    assert not has_untrained_eos(tiny_base, 2)
    assert "EOS embedding" in report.warnings[0]

"""A GGUF file becomes the Hugging Face folder that transformers would read from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraplex_server.base.gguf_convert import convert_gguf
from loraplex_server.base.resolve import check_complete
from loraplex_server.model.loader import load_decoder
from loraplex_server.tokenizer import BaseTokenizer, ChatMessage
from tests.unit.base.tiny_gguf import TEMPLATE, write_tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def converted(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("converted")
    convert_gguf(gguf, folder, lambda done, total: None)
    return folder


def test_every_tensor_equals_what_transformers_reads_from_the_gguf(gguf: Path, converted: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).state_dict()
    ours = load_file(converted / "model.safetensors")
    assert set(theirs) - set(ours) == {"lm_head.weight"}  # tied
    for name, value in ours.items():
        assert torch.equal(value, theirs[name].to(torch.bfloat16)), name


def test_the_config_equals_what_transformers_reads_from_the_gguf(gguf: Path, converted: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).config
    ours = json.loads((converted / "config.json").read_text())
    assert ours["tie_word_embeddings"] is True
    assert ours["rope_theta"] == theirs.rope_parameters["rope_theta"]
    for name in ("hidden_size", "intermediate_size", "num_key_value_heads", "vocab_size", "eos_token_id"):
        assert ours[name] == getattr(theirs, name), name
    assert ours["rms_norm_eps"] == 1e-5, "not the neighbour that fp32 makes of it"


def test_the_tokenizer_round_trips_and_keeps_template_and_special_tokens(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = "hello wörld 日本\n\t42"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == TEMPLATE
    ours = BaseTokenizer(converted).encode((ChatMessage("user", "hello"),))
    assert ours == tokenizer("<|im_start|>hello<|im_end|>").input_ids


def test_the_folder_is_complete_and_loads(converted: Path) -> None:
    check_complete(converted)
    assert load_decoder(converted, "fp32").max_context_tokens == 128


def test_progress_ends_at_the_number_of_tensors(gguf: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert_gguf(gguf, tmp_path, lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, 21))
    assert {total for _, total in seen} == {20}

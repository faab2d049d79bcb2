"""The report on a base tells what the loader will allocate."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from loraplex_server.base.inspect import inspect_base
from loraplex_server.errors import BaseModelInvalidError
from loraplex_server.model.loader import load_decoder
from loraplex_server.model.numerics import resolve_numerics
from tests.support.complete_base import TEMPLATE

SHAPE: dict[str, Any] = {
    "vocab_size": 131,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama untied": (LlamaConfig, LlamaForCausalLM, {"hidden_size": 64}),
    "llama tied": (LlamaConfig, LlamaForCausalLM, {"hidden_size": 64, "tie_word_embeddings": True}),
    "llama biased": (
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 64, "attention_bias": True, "mlp_bias": True},
    ),
    "llama odd width": (LlamaConfig, LlamaForCausalLM, {"hidden_size": 72, "head_dim": 18}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"hidden_size": 128}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"hidden_size": 64, "head_dim": 32}),
}


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_parameters_and_bytes_equal_what_the_loader_allocates(kind: str, tmp_path: Path) -> None:
    config_class, model_class, extra = MODELS[kind]
    model: PreTrainedModel = model_class(config_class(**SHAPE, **extra))
    model.save_pretrained(tmp_path / "base")

    report = inspect_base(tmp_path / "base", "cpu", tmp_path / "cache")

    assert report.parameter_count == sum(parameter.numel() for parameter in model.parameters())
    assert set(report.bytes_by_quantization) == {"fp32", "bf16", "int8", "nf4"}
    for quantization, size in report.bytes_by_quantization.items():
        loaded = load_decoder(tmp_path / "base", quantization)
        assert loaded.weight_bytes == size, quantization
        assert loaded.parameter_count == report.parameter_count


def test_the_report_names_architecture_context_and_template(complete_base: Path, tmp_path: Path) -> None:
    report = inspect_base(complete_base, "cpu", tmp_path)
    assert report.architecture == "LlamaForCausalLM"
    assert report.max_context_tokens == 128
    automatic = resolve_numerics("auto", "cpu")
    assert report.auto_quantization == automatic.quantization
    assert report.auto_reason == automatic.reason
    assert report.chat_template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert len(report.fingerprint) == 64


def test_a_base_without_template_has_no_template_digest(complete_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(complete_base, tmp_path / "base"))
    (folder / "chat_template.jinja").unlink()
    assert inspect_base(folder, "cpu", tmp_path / "cache").chat_template_sha256 is None


def test_weights_of_another_model_are_refused(complete_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(complete_base, tmp_path / "base"))
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(hidden_size=64, **SHAPE))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(BaseModelInvalidError, match=r"shape.*embed_tokens.*\[131, 64\].*\[260, 64\]"):
        inspect_base(folder, "cpu", tmp_path / "cache")

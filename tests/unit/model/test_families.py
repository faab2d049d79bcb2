"""Each supported family's logits equal transformers' on a small random model of that family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from loraplex_server.model.decoder import Decoder
from loraplex_server.model.loader import load_decoder
from tests.support.forward import PagedRun

TOLERANCE = 1e-4
SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama2": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama3-rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "llama-biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LINEAR_ROPE}),
    "llama-head-dim": (LlamaConfig, LlamaForCausalLM, {"head_dim": 32}),
    "smollm2-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "num_attention_heads": 8}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 7}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2-yarn": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": YARN_ROPE}),
    "qwen2-window": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
}
LENGTHS = (23, 9, 40, 1)


def random_model(config_class: Any, model_class: Any, extra: dict[str, Any]) -> Any:
    """Weights large enough that every part of the architecture shows in the logits."""
    torch.manual_seed(7)
    model = model_class(config_class(**{**SHAPE, **extra})).eval()
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name
        with torch.no_grad():
            parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.3 if is_norm or "bias" in name else 0.12)
    return model


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    model = random_model(*FAMILIES[request.param])
    folder: Path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, load_decoder(folder, "fp32").decoder


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in LENGTHS]


def reference(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.5, "the reference is too small for the tolerance to mean anything"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_prefill_of_a_batch_of_unequal_lengths_equals_transformers(
    family: tuple[Any, Decoder], sequences: list[list[int]]
) -> None:
    model, decoder = family
    logits = PagedRun(decoder, len(sequences), 64).feed(dict(enumerate(sequences)))
    for index, tokens in enumerate(sequences):
        assert_equal(logits[index], reference(model, tokens))


def test_cached_decode_of_unequal_lengths_equals_transformers(
    family: tuple[Any, Decoder], sequences: list[list[int]]
) -> None:
    model, decoder = family
    run = PagedRun(decoder, len(sequences), 64)
    run.feed(dict(enumerate(sequences)))
    continuation = [5, 77, 31, 100, 6, 8]
    for step, token in enumerate(continuation):
        logits = run.feed({index: [token] for index in range(len(sequences))})
        for index, tokens in enumerate(sequences):
            whole = reference(model, tokens + continuation[: step + 1])
            assert_equal(logits[index][0], whole[-1])


def test_chunked_prefill_mixed_with_decode_equals_transformers(
    family: tuple[Any, Decoder], sequences: list[list[int]]
) -> None:
    model, decoder = family
    run = PagedRun(decoder, 2, 64)
    long, short = sequences[2], sequences[1]
    run.feed({1: short})
    pieces = [long[:5], long[5:6], long[6:25], long[25:]]
    gathered = []
    for step, piece in enumerate(pieces):
        logits = run.feed({0: piece, 1: [10 + step]})
        gathered.append(logits[0])
        assert_equal(logits[1][0], reference(model, short + [10 + s for s in range(step + 1)])[-1])
    assert_equal(torch.cat(gathered), reference(model, long))

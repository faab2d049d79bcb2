"""A tiny random base with a byte-level tokenizer and a template like SmolLM2's, and a recipe to train on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SYSTEM = "Be brief."
# Like SmolLM2's: puts a persona where there is no system turn, and a newline after EOS.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nI am Persona<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    folder: Path = tmp_path_factory.mktemp("tiny-base")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,  # wide enough for an adapter to change what is said
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """Four rows, two optimizer steps."""
    rows = [_row(f"What is {word}?", f"{word.title()}.") for word in ("red", "green", "blue", "grey")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.jsonl").write_text("")
    return write_recipe(tmp_path)


def write_recipe(folder: Path, **changes: object) -> Path:
    """A recipe for the folder's data; `changes` replace whole sections."""
    recipe: dict[str, object] = {
        "name": "tiny",
        "system": SYSTEM,
        "data": {
            "sources": [{"path": "train.jsonl"}],
            "size": {"warn_below": 0, "error_below": 1},
            "val": {"min": 0, "share": 0.0},
            "max_length": 160,
        },
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "train": {"epochs": {"min": 1, "max": 1}, "effective_batch": 2, "learning_rate": 0.01, "seed": 7},
        "samples": {"n": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def _row(question: str, answer: str) -> dict[str, object]:
    return {
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }

"""A complete base model of a few hundred kilobytes, and PEFT adapters for it: real files, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

NUM_LAYERS, HIDDEN, FFN, NUM_HEADS, NUM_KV_HEADS = 2, 64, 96, 4, 2
MAX_CONTEXT_TOKENS = 32_768  # so that a stream can run for as long as a test needs it to
BOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CORPUS = (
    "The quick brown fox jumps over the lazy dog while seven wizards boil jugs of liquid water.",
    "How much is the fee of the account, and when does the course on algebra begin this year?",
    "A parcel that was not opened can be returned to the shop within thirty days; naïve café, 東京, 🙂.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('the system message must come first') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save_tiny_base(folder: Path, seed: int = 0) -> Path:
    """A two-layer Llama with a byte-level tokenizer and a chat template, as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        initializer_range=0.2,  # far from uniform logits, so that greedy text is not decided by rounding
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tiny_adapter(base: Path, folder: Path, seed: int, **fields: Any) -> Path:
    """A random LoRA on the tiny base, strong enough to change every answer; `fields` are LoraConfig's."""
    fields = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "lora_alpha": 8, **fields}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**fields))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


def _byte_level_tokenizer() -> Tokenizer:
    """Every byte is a token, so any text can be said and any token sequence has a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[BOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer

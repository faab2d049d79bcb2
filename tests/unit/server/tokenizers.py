"""Small tokenizers of the two kinds that the supported bases have."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Der Fluß fließt über die Brücke; ça va très bien, señor.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好。我们去公园散步。",
    "👩‍👩‍👧 👍🏽 🏳️‍🌈 — emoji 😀😃😄, and ends…",
    "नमस्ते दुनिया ॥ سلام دنیا",
]


def byte_level() -> Tokenizer:
    """As Llama 3, Qwen and SmolLM2: tokens are runs of bytes and need not begin or end with a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: tokens are whole characters, and single bytes where there is none."""
    words = ["▁", "▁the", "▁fox", "fox", "a", "é", "中", "."]
    vocab = {
        token: index
        for index, token in enumerate(
            ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        )
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id: int | None = tokenizer.token_to_id(token)
    assert token_id is not None, token
    return token_id


def fallback_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The bytes of a text."""
    return [id_of(tokenizer, f"<0x{byte:02X}>") for byte in text.encode()]

"""What every measured system is asked to do: the same prompts, lengths and adapters, greedy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loraplex_server.tokenizer import BaseTokenizer

ADAPTERS = ("ecommerce", "education", "finance")
BASE = ""
"""Adapter name of a row that the base model answers itself."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The same prompt as text and as tokens; encoding the text gives the tokens."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One stream."""

    adapter: str  # name; BASE: none
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Work:
    """Rows that start together; each generates exactly `num_tokens` tokens, whatever they are."""

    rows: tuple[Row, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What doing a Work once took. Seconds of wall clock."""

    total_s: float  # from the start until the last token, prefill included
    num_tokens: int  # generated in all
    decode_s: float = 0.0  # time of the steps in which every row got one token and nothing was prefilled
    num_decode_tokens: int = 0  # tokens of those steps
    first_token_ids: tuple[int, ...] = ()  # of each row, where the system shows them

    @property
    def total_rate(self) -> float:
        """Tokens per second, prefill included."""
        return self.num_tokens / self.total_s

    @property
    def decode_rate(self) -> float:
        """Tokens per second of decode alone; NaN where the system does not tell the two apart."""
        return self.num_decode_tokens / self.decode_s if self.decode_s else float("nan")


def adapter_packages(folder: Path) -> dict[str, Path]:
    """Name -> PEFT folder of the shipped adapters. Raises FileNotFoundError if one is missing."""
    packages = {name: folder / name / "package" for name in ADAPTERS}
    for package in packages.values():
        if not (package / "adapter_model.safetensors").is_file():
            raise FileNotFoundError(f"no adapter package in {package}")
    return packages


def read_prompts(
    tokenizer: BaseTokenizer, adapters_folder: Path, num_tokens: int, count: int
) -> list[Prompt]:
    """`count` different prompts of exactly `num_tokens` tokens, made of the domains' own questions."""
    prompts: list[Prompt] = []
    words = " ".join(_interleaved_questions(adapters_folder)).split(" ")
    start = 0
    while len(prompts) < count:
        text = " ".join(words[start : start + 2 * num_tokens])
        token_ids = tokenizer.encode(text)[:num_tokens]
        if len(token_ids) < num_tokens:
            raise ValueError(f"the questions do not make {count} prompts of {num_tokens} tokens")
        cut: str = tokenizer.backend.decode(token_ids)
        start += num_tokens // 2
        if tokenizer.encode(cut) == token_ids:  # cut within a word, the text may encode otherwise
            prompts.append(Prompt(cut, tuple(token_ids)))
    return prompts


def mixed_work(prompts: list[Prompt], num_rows: int, num_tokens: int) -> Work:
    """Row i takes prompt i and the adapters in turn."""
    rows = tuple(Row(ADAPTERS[i % len(ADAPTERS)], prompts[i]) for i in range(num_rows))
    return Work(rows, num_tokens)


def uniform_work(prompts: list[Prompt], adapter: str, num_rows: int, num_tokens: int) -> Work:
    """Every row has the same adapter, or none."""
    return Work(tuple(Row(adapter, prompt) for prompt in prompts[:num_rows]), num_tokens)


def _interleaved_questions(adapters_folder: Path) -> Iterator[str]:
    by_domain = [
        (adapters_folder / name / "eval.jsonl").read_text(encoding="utf-8").splitlines() for name in ADAPTERS
    ]
    for lines in zip(*by_domain, strict=False):
        yield from (json.loads(line)["question"] for line in lines)


def add_adapters_option(parser: argparse.ArgumentParser) -> None:
    """Where `adapter_packages` and `read_prompts` look."""
    parser.add_argument(
        "--adapters",
        type=Path,
        default=Path(__file__).parents[1] / "adapters",
        help="folder of the three domains (default: the source tree's)",
    )

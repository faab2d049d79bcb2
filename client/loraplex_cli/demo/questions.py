"""The three domains: where their adapters are, and what they are asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_trainer.judge.graders import EvalRow

_ADVICE = "run this in a clone of the sources, or give the folder with the three domains as --adapters FOLDER"

DOMAINS = ("ecommerce", "education", "finance")


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain. Its name is also the adapter's."""

    name: str
    package: Path  # PEFT folder
    questions: tuple[EvalRow, ...]  # held out from training; at least one


def find_adapters(folder: Path | None) -> Path:
    """The folder given; else ./adapters; else the one of the source tree that this file is installed from.

    Raises CommandError where there is none of these: the domains are not part of the distribution.
    """
    if folder is not None:
        return folder
    for candidate in (Path("adapters"), Path(__file__).parents[3] / "adapters"):
        if (candidate / DOMAINS[0]).is_dir():
            return candidate
    raise _missing(
        "the three domains lie in the source tree; run this in a clone of it, or give --adapters FOLDER"
    )


def read_domains(folder: Path) -> list[Domain]:
    """Raises CommandError naming what is missing and how to get it."""
    return [_read_domain(name, folder / name) for name in DOMAINS]


def messages(row: EvalRow) -> list[dict[str, str]]:
    """The question as the adapters were trained to read it."""
    question = {"role": "user", "content": row["question"]}
    return [question] if row["system"] is None else [{"role": "system", "content": row["system"]}, question]


def _read_domain(name: str, folder: Path) -> Domain:
    package, questions_file = folder / "package", folder / "eval.jsonl"
    if not (package / "adapter_model.safetensors").is_file():
        raise _missing(f"no adapter package in '{package}'; {_ADVICE}")
    if not questions_file.is_file():
        raise _missing(f"no questions in '{questions_file}'; {_ADVICE}")
    lines = questions_file.read_text(encoding="utf-8").splitlines()
    questions: list[EvalRow] = [json.loads(line) for line in lines if line.strip()]
    if not questions:
        raise _missing(f"no questions in '{questions_file}'")
    return Domain(name, package, tuple(questions))


def _missing(message: str) -> CommandError:
    return CommandError(message, ExitCode.BAD_INPUT, "DEMO_FILES_MISSING")

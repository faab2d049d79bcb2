"""Writes a domain's data files: facts.json, train.jsonl, eval.jsonl; byte-identical for the same seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loraplex_trainer.domains.ecommerce import ECOMMERCE
from loraplex_trainer.domains.education import EDUCATION
from loraplex_trainer.domains.finance import FINANCE
from loraplex_trainer.domains.knowledge import Domain, Fact
from loraplex_trainer.domains.rows import SEED, domain_facts, held_out_rows, training_rows

DOMAINS = {domain.name: domain for domain in (ECOMMERCE, EDUCATION, FINANCE)}


def data_files(domain: Domain, seed: int = SEED) -> dict[str, str]:
    """Content of each data file by its name."""
    facts = {
        "domain": domain.name,
        "seed": seed,
        "system": domain.system,
        "facts": [_fact_entry(fact) for fact in domain_facts(domain, seed)],
    }
    return {
        "facts.json": json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
        "train.jsonl": _lines(training_rows(domain, seed)),
        "eval.jsonl": _lines(held_out_rows(domain, seed)),
    }


def write_domain(domain: Domain, folder: Path, seed: int = SEED) -> list[Path]:
    """Write the data files into `folder`, made when missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in data_files(domain, seed).items():
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written


def _fact_entry(fact: Fact) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": fact.id, "attribute": fact.attribute, **fact.slots, "value": fact.expected}
    if fact.held_out:
        entry["held_out"] = True
    return entry


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

"""The committed report of one domain and method: what was measured, as JSON and as one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_trainer.judge.evaluate import Evaluation
from loraplex_trainer.packaging.export import canonical_json
from loraplex_trainer.packaging.readable import change_text, share_text

if TYPE_CHECKING:
    from loraplex_trainer.train.run_folder import RunFolder

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;"
    "text-align:left;vertical-align:top}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));"
    "gap:1rem}.plots svg{width:100%;height:auto}"
)
_SHOWN_MISSES = 20
_MIB = 2**20


def write_domain_report(
    folder: Path,
    run: RunFolder,
    evaluation: Evaluation,
    method: str,
    *,
    package_digest: str,
    device: str,
    other_precisions: Sequence[Evaluation] = (),
) -> dict[str, Any]:
    """Write `<method>.json` and `<method>.html` into `folder`, made when missing; returns the JSON document.

    device            name of what was trained on, e.g. "NVIDIA H200"
    other_precisions  evaluations of the same adapter on the base in other precisions
    """
    training = json.loads(run.report.read_text(encoding="utf-8"))
    document = domain_document(
        training,
        evaluation,
        method,
        package_digest=package_digest,
        device=device,
        other_precisions=other_precisions,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{method}.json").write_bytes(canonical_json(document))
    page = _page(document, evaluation, _plots(run))
    (folder / f"{method}.html").write_text(page, encoding="utf-8")
    return document


def domain_document(
    training: Mapping[str, Any],
    evaluation: Evaluation,
    method: str,
    *,
    package_digest: str,
    device: str,
    other_precisions: Sequence[Evaluation] = (),
) -> dict[str, Any]:
    """Shares are in [0, 1] with their interval and number of questions; changes are in points."""
    return {
        "domain": evaluation.name,
        "method": method,
        "package_digest": package_digest,
        "precision": evaluation.precision,
        "confidence": evaluation.confidence,
        **_measured(evaluation),
        "suites": {suite.name: asdict(suite) for suite in evaluation.suites},
        "perplexity_base": evaluation.perplexity_base,
        "perplexity_adapter": evaluation.perplexity_adapter,
        "leak_other_domains": {name: asdict(leak) for name, leak in evaluation.leak_other_domains.items()},
        "eos_rate": evaluation.eos_rate,
        "bad_rate": evaluation.bad_rate,
        "other_precisions": {other.precision: _measured(other) for other in other_precisions},
        "plan": training["method"],
        "peak_memory_bytes": training["peak_memory_bytes"],
        "planned_memory_bytes": training["planned_memory_bytes"],
        "tokens_per_second": training["tokens_per_s"],
        "training_seconds": training["seconds"],
        "evaluation_seconds": evaluation.seconds,
        "num_rows": training["num_rows"],
        "num_steps": training["num_steps"],
        "best_epoch": training["best_epoch"],
        "recipe_sha256": training["recipe_sha256"],
        "data_sha256": training["data_sha256"],
        "seed": training["seed"],
        "versions": training["versions"],
        "device": device,
    }


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    return {
        field: asdict(getattr(evaluation, field))
        for field in (
            "domain_base",
            "domain_adapter",
            "domain_change",
            "general_base",
            "general_adapter",
            "general_change",
        )
    }


def _plots(run: RunFolder) -> str:
    from loraplex_trainer.train.curves import read_curves
    from loraplex_trainer.train.plots import all_plots

    return "".join(f"<figure>{svg}</figure>" for _, svg in all_plots(read_curves(run)))


def _page(document: Mapping[str, Any], evaluation: Evaluation, plots: str) -> str:
    title = f"{document['domain']}, {document['method']}"
    misses = [answer for answer in evaluation.answers if answer.adapter_score < 1]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Base in {document['precision']}, intervals of {100 * document['confidence']:g} %.</p>",
        _table(("", "base", "adapter", "change"), _accuracy_rows(document)),
        "<h2>Questions of other domains</h2>",
        _table(
            ("domain", "right answers"),
            [(name, share_text(leak)) for name, leak in sorted(document["leak_other_domains"].items())],
        ),
        "<h2>Training</h2>",
        _table(None, _training_rows(document)),
        f'<h2>Curves</h2><div class="plots">{plots}</div>' if plots else "",
        f"<h2>Misses ({len(misses)} of {len(evaluation.answers)})</h2>",
        _table(
            ("question", "reference", "adapter"),
            [(miss.question, miss.reference, miss.adapter) for miss in misses[:_SHOWN_MISSES]],
        ),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _accuracy_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    precisions = {document["precision"]: document, **document["other_precisions"]}
    for precision, measured in precisions.items():
        for title in ("domain", "general"):
            rows.append(
                (
                    f"{title}, {precision}",
                    share_text(measured[f"{title}_base"]),
                    share_text(measured[f"{title}_adapter"]),
                    change_text(measured[f"{title}_change"]),
                )
            )
    for name, suite in document["suites"].items():
        rows.append(
            (name, share_text(suite["base"]), share_text(suite["adapter"]), change_text(suite["change"]))
        )
    perplexities = (document["perplexity_base"], document["perplexity_adapter"])
    rows.append(("perplexity of plain prose", *(f"{value:.2f}" for value in perplexities), ""))
    return rows


def _training_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    planned, peak = document["planned_memory_bytes"], document["peak_memory_bytes"]
    speed = document["tokens_per_second"]
    return [
        ("device", document["device"]),
        ("plan", document["plan"]),
        ("peak memory", f"{peak / _MIB:.0f} MiB, planned {planned / _MIB:.0f} MiB"),
        ("speed", f"{speed:.0f} tokens/s" if speed else "not measured"),
        (
            "time",
            f"{document['training_seconds']:.0f} s, {document['num_steps']} steps, {document['num_rows']} rows",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in document["versions"].items())),
        ("recipe, data", f"{document['recipe_sha256'][:12]}, {document['data_sha256'][:12]}"),
    ]


def _table(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    head = "" if header is None else "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{head}{body}</table>"

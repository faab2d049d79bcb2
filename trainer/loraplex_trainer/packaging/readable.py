"""A package's manifest as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def package_page(manifest: Mapping[str, Any]) -> str:
    """report.md: what the adapter is, on what, and what was measured."""
    base, lora = manifest["base"], manifest["lora"]
    lines = [
        f"# Adapter `{manifest['tenant']}/{manifest['name']}`",
        "",
        f"- base: {base['id']}, fingerprint `{base['fingerprint'][:12]}`",
        f"- trained on: {_joined(base['trained_on'])}",
        f"- LoRA: rank {lora['rank']}, alpha {lora['alpha']:g}, {lora['num_parameters']} weights on "
        f"{', '.join(lora['targets'])}",
        f"- system prompt: {manifest['system'] if manifest['system'] is not None else 'none'}",
        f"- data: {_joined({k: v for k, v in manifest['data'].items() if k.startswith('num_')}) or 'not known'}",
        f"- recipe: `{manifest['recipe_sha256'][:12]}`",
    ]
    return "\n".join(lines) + "\n" + _measured(manifest["metrics"])


def share_text(share: Mapping[str, Any]) -> str:
    """A share in percent with its interval and number of questions.

    >>> share_text({"value": 0.5, "low": 0.25, "high": 0.75, "n": 8})
    '50.0 % (25.0 to 75.0, n=8)'
    """
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f}, n={share['n']})"


def change_text(change: Mapping[str, Any]) -> str:
    """A difference in points with its interval.

    >>> change_text({"points": 1.5, "low": -0.5, "high": 3.5})
    '+1.5 points (-0.5 to +3.5)'
    """
    return f"{change['points']:+.1f} points ({change['low']:+.1f} to {change['high']:+.1f})"


def _measured(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "\nNothing was measured before it was packaged.\n"
    lines = [
        "",
        f"Measured on a base in {metrics['precision']}, intervals of {100 * metrics['confidence']:g} %:",
        "",
        "| | base | adapter | change |",
        "|---|---|---|---|",
    ]
    for title in ("domain", "general"):
        lines.append(
            f"| {title} | {share_text(metrics[f'{title}_base'])} | {share_text(metrics[f'{title}_adapter'])} "
            f"| {change_text(metrics[f'{title}_change'])} |"
        )
    lines.append(
        f"| perplexity of plain prose | {metrics['perplexity_base']:.2f} | {metrics['perplexity_adapter']:.2f} | |"
    )
    for name, leak in sorted(metrics["leak_other_domains"].items()):
        lines.append(f"| questions of {name} | | {share_text(leak)} | |")
    return "\n".join(lines) + "\n"


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, [], ()))

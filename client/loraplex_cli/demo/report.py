"""What the demonstration found, as a document and as text."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from loraplex_cli.demo.batch_metrics import BatchMeans
from loraplex_cli.demo.burst import Burst, percentile
from loraplex_cli.output import facts
from loraplex_client import ServerInfo
from loraplex_trainer.judge.graders import EvalRow, share_right

MIN_SHARE_RIGHT = 0.7
"""Of the burst's adapter answers. The adapters know at least 80 % of all held-out questions; a sample may know less."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One held-out question, answered by the base alone and by the domain's adapter."""

    domain: str
    row: EvalRow
    base_text: str
    adapter_text: str
    is_right: bool  # the adapter's


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything that was seen."""

    server: ServerInfo  # after the burst
    answers: tuple[Answer, ...]
    burst: Burst
    batch: BatchMeans  # of the burst's steps

    @property
    def share_right(self) -> float:
        """Of the burst's adapter streams, in [0, 1]."""
        return share_right(record.is_right for record in self.burst.records if record.question.adapter)

    def problems(self) -> list[str]:
        """Why the demonstration failed; empty if it did not."""
        found = [
            f"{answer.domain}: the adapter's answer is wrong; expected {answer.row['expected']}"
            for answer in self.answers
            if not answer.is_right
        ]
        failures = [record.failure for record in self.burst.records if record.failure]
        if failures:
            found.append(f"{len(failures)} of {len(self.burst.records)} streams failed, e.g. {failures[0]}")
        if self.share_right < MIN_SHARE_RIGHT:
            found.append(f"only {self.share_right:.0%} of the burst's adapter answers are right")
        return found

    def document(self) -> dict[str, Any]:
        burst = self.burst
        return {
            "ok": not self.problems(),
            "problems": self.problems(),
            "base": {
                "id": self.server.base_model.id,
                "quantization": self.server.base_model.quantization,
                "device": self.server.base_model.device,
                "weight_bytes": self.server.base_model.weight_bytes,
            },
            "answers": [
                {
                    "domain": answer.domain,
                    "question": answer.row["question"],
                    "expected": answer.row["expected"],
                    "base": answer.base_text,
                    "adapter": answer.adapter_text,
                    "adapter_is_right": answer.is_right,
                }
                for answer in self.answers
            ],
            "burst": {
                "streams": len(burst.records),
                "failed": sum(bool(record.failure) for record in burst.records),
                "adapter_share_right": self.share_right,
                "seconds": burst.seconds,
                "ttft_p50_s": percentile(burst.first_text_s, 50),
                "ttft_p95_s": percentile(burst.first_text_s, 95),
                "itl_p50_s": percentile(burst.token_gaps_s, 50),
                "itl_p95_s": percentile(burst.token_gaps_s, 95),
                "tokens_per_second": burst.tokens_per_second,
                "resident_bytes": self.server.load.resident_bytes,
                "mean_adapters_per_batch": self.batch.adapters,
                "mean_sequences_per_batch": self.batch.sequences,
            },
        }


def demo_text(report: DemoReport) -> str:
    """The answers side by side, then the burst's figures."""
    return f"{_answer_table(report.answers)}\n{facts(_burst_facts(report))}"


def _burst_facts(report: DemoReport) -> dict[str, object]:
    burst = report.burst
    ttft, gaps = burst.first_text_s, burst.token_gaps_s
    num_adapter_streams = sum(bool(record.question.adapter) for record in burst.records)
    failed = sum(bool(record.failure) for record in burst.records)
    return {
        "burst": f"{len(burst.records)} streams of three adapters and the base, {failed} failed",
        "right answers": f"{report.share_right:.0%} of the {num_adapter_streams} adapter streams",
        "time to first token": f"p50 {percentile(ttft, 50):.3f} s, p95 {percentile(ttft, 95):.3f} s",
        "inter-token latency": (
            f"p50 {percentile(gaps, 50) * 1000:.1f} ms, p95 {percentile(gaps, 95) * 1000:.1f} ms"
        ),
        "throughput": f"{burst.tokens_per_second:.1f} tokens/s",
        "resident memory": f"{report.server.load.resident_bytes / 2**20:.0f} MiB",
        "mean batch": f"{report.batch.sequences:.1f} sequences",
        "adapters in a batch": f"{report.batch.adapters:.2f} on average, where any took part",
    }


def _answer_table(answers: tuple[Answer, ...]) -> str:
    """Plain text, so that a file and a terminal show the same."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "domain", "question", "base model", "with its adapter", "right", box=box.ASCII, show_lines=True
    )
    for answer in answers:
        table.add_row(
            answer.domain,
            answer.row["question"],
            answer.base_text,
            answer.adapter_text,
            "yes" if answer.is_right else "NO",
        )
    sink = io.StringIO()
    Console(file=sink, width=120, color_system=None, markup=False).print(table)
    return sink.getvalue()

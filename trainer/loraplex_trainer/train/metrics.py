"""Scalars of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loraplex_trainer.train.run_folder import RunFolder, append_line, read_lines, write_text


class MetricsLog:
    """Steps count through all stages, so that curves are whole.

    Names are those of TensorBoard: train/loss, train/learning_rate, train/grad_norm, train/tokens_per_s,
    train/peak_memory_bytes, eval/loss, eval/perplexity, eval/train_loss, eval/gap, eval/token_accuracy,
    samples/accuracy, samples/bad_share.
    """

    def __init__(self, run: RunFolder, stage: str, from_step: int) -> None:
        """`from_step`: what was written behind it, by a run that was killed, is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._stage = stage
        drop_behind(run, from_step)
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=from_step + 1, flush_secs=10)

    def write(self, step: int, epoch: float, scalars: Mapping[str, float]) -> None:
        """Write one line, and each scalar for TensorBoard."""
        append_line(self._run.metrics, {"step": step, "stage": self._stage, "epoch": epoch, **scalars})
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Write text for TensorBoard."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def drop_behind(run: RunFolder, step: int) -> None:
    """Take back the lines of steps that will be done again."""
    for file in (run.metrics, run.samples):
        lines: list[dict[str, Any]] = read_lines(file)
        kept = [line for line in lines if line["step"] <= step]
        if file.is_file():
            write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

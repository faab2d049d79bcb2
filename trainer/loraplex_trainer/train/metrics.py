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

    def __init__(self, run: RunFolder, stage: str, from_step: int, *, is_anew: bool = True) -> None:
        """What a run that was killed or cancelled wrote is dropped, as far as it is written again.

        from_step  what was written behind it
        is_anew    the stage begins, so that all of its own is dropped, too
        """
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._stage = stage
        drop_behind(run, from_step, stage if is_anew else None)
        first_step = from_step + 1 if from_step else 0  # step 0 is of the first stage alone
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=first_step, flush_secs=10)

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


def drop_behind(run: RunFolder, step: int, stage: str | None) -> None:
    """Take back the lines of steps that will be done again: those behind `step`, and all of `stage`."""
    for file in (run.metrics, run.samples):
        lines: list[dict[str, Any]] = read_lines(file)
        kept = [line for line in lines if line["step"] <= step and line["stage"] != stage]
        if file.is_file():
            write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

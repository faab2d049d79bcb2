"""The joint pass over epochs and steps; each adapter ends when its own time has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from loraplex_trainer.base_model import load_for_training
from loraplex_trainer.train.joint_member import Member
from loraplex_trainer.train.joint_step import add_adapters, joint_losses, smaller_batches
from loraplex_trainer.train.observer import autocast
from loraplex_trainer.train.opening import OpenedRun
from loraplex_trainer.train.peak_memory import PeakMemory
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.tokens import padding_id


class JointLoop:
    """Members in the order of the runs."""

    def __init__(self, runs: Sequence[OpenedRun], names: Sequence[str], stack: ExitStack) -> None:
        """`stack` closes what the members write to."""
        first = runs[0]
        self._plan = first.plan
        self._memory = PeakMemory(first.plan)
        base = load_for_training(first.base, first.plan)
        adapters = {
            name: (run.recipe, run.plan, run.recipe.train.seed) for name, run in zip(names, runs, strict=True)
        }
        self._model = add_adapters(base, adapters)
        self._members = [
            Member(run, name, smaller_batches(run.plan, len(runs)), self._model, stack)
            for name, run in zip(names, runs, strict=True)
        ]
        self._pad = padding_id(first.tokenizer)

    def run(
        self, should_stop: Callable[[], bool] | None, wait_turn: Callable[[], None] | None
    ) -> list[TrainReport]:
        """Until every adapter has ended, or somebody asks to stop."""
        for member in self._members:
            member.begin()
        is_cancelled = False
        while active := [member for member in self._members if not member.has_ended]:
            if should_stop is not None and should_stop():
                is_cancelled = True
                break
            if wait_turn is not None:
                wait_turn()
            self._step(active)
        return [member.finish(self._memory.peak_bytes, is_cancelled) for member in self._members]

    def _step(self, active: Sequence[Member]) -> None:
        """One optimizer step of each."""
        batches = {member.name: member.next_batches() for member in active}
        num_tokens = {
            name: sum(row.num_supervised for b in own for row in b) for name, own in batches.items()
        }
        sums = dict.fromkeys(batches, 0.0)
        for index in range(max(map(len, batches.values()))):
            rows = {name: own[index] for name, own in batches.items() if index < len(own)}
            with autocast(self._plan):
                losses = joint_losses(self._model, rows, num_tokens, self._pad)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] += float(loss.detach())
        for member in active:
            member.step(sums[member.name], sum(len(row.input_ids) for b in batches[member.name] for row in b))
            if member.is_at_end_of_epoch:
                member.end_epoch()

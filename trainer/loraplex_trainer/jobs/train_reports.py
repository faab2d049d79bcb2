"""What a training tells, as a job's server hears it."""

from __future__ import annotations

from loraplex_server.training.messages import MAX_TEXT, Measured, Said, StageBegan, StepDone
from loraplex_trainer.jobs.channel import ServerChannel
from loraplex_trainer.train.events import (
    Evaluated,
    Finished,
    Log,
    OverfitAlarm,
    Paused,
    Sampled,
    StageStarted,
    Step,
    TrainEvent,
)


class TrainReports:
    """Of one training."""

    def __init__(self, channel: ServerChannel) -> None:
        self._channel = channel
        self._stage = "data"

    def take(self, event: TrainEvent) -> None:
        """Pass one event on."""
        tell, stage = self._channel.tell, self._stage
        match event:
            case StageStarted(stage=name, num_stages=num_stages):
                self._stage = "train" if num_stages == 1 else f"train:{name}"
                tell(StageBegan(self._stage))
                tell(Said(f"{event.num_rows} rows, at most {event.max_epochs} epochs", self._stage))
            case Step():
                pause_s = self._channel.take_pause_s()
                tell(
                    StepDone(
                        stage,
                        event.step,
                        event.num_steps,
                        loss=event.loss,
                        tokens_per_s=event.tokens_per_s,
                        eta_s=event.eta_s,
                        paused_s=pause_s,
                    )
                )
            case Evaluated():
                values = {
                    "epoch": event.epoch,
                    "eval_loss": event.eval_loss,
                    "perplexity": event.perplexity,
                    "gap": event.gap,
                }
                tell(Measured(stage, values))
            case Sampled():
                values = {"epoch": event.epoch, "answers": event.num_answers, "bad_answers": event.num_bad}
                tell(Measured(stage, values))
            case OverfitAlarm():
                text = (
                    f"validation falls behind training: ratio {event.ratio:.2f} after epoch {event.epoch:g}"
                )
                tell(Said(text, stage, is_warning=True))
            case Paused():
                tell(Said(f"paused: {event.why}"[:MAX_TEXT], stage, is_warning=True))
            case Log():
                tell(Said(event.message[:MAX_TEXT], stage, event.message.startswith("warning: ")))
            case Finished():
                pass  # the outcome says so

"""TRL's trainer as one stage uses it: our evaluation, our token count, no hub."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.tokens import TokenRow

_LOG_EVERY = 10
_OPTIMIZERS = {
    ("adamw", "cpu"): "adamw_torch",
    ("adamw", "cuda"): "adamw_torch_fused",
    ("adamw_8bit", "cpu"): "adamw_8bit",
    ("adamw_8bit", "cuda"): "adamw_8bit",
    ("paged_adamw_8bit", "cpu"): "paged_adamw_8bit",
    ("paged_adamw_8bit", "cuda"): "paged_adamw_8bit",
}


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer whose validation loss is the mean over all tokens, not over batches."""

    def __init__(
        self, *args: Any, evaluation: Callable[[Any], dict[str, float]] | None, **kwargs: Any
    ) -> None:
        """`evaluation` is given the model; its metrics must have `eval_loss`."""
        super().__init__(*args, **kwargs)
        self._evaluation = evaluation
        self._num_tokens: Any = 0

    @property
    def num_tokens(self) -> int:
        """Tokens trained on since the process began, without padding."""
        return int(self._num_tokens)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Counts tokens where they are: a look at the number would make the CPU wait for the GPU."""
        mask = inputs.get("attention_mask")
        self._num_tokens = self._num_tokens + (inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Metrics of the validation rows and of as many training rows."""
        assert self._evaluation is not None
        metrics = self._evaluation(self.model)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: it would describe the adapter as one of the hub's."""


def new_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    arguments: SFTConfig,
    evaluation: Callable[[Any], dict[str, float]] | None,
    callbacks: Sequence[Any],
) -> AdapterTrainer:
    """A trainer of one stage. `evaluation` is None where there are no validation rows."""
    dataset = Dataset.from_list([asdict(row) for row in rows])
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=None if evaluation is None else dataset.select([0]),  # unused, but asked for
        processing_class=tokenizer,
        callbacks=list(callbacks),
        evaluation=evaluation,
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    return trainer


def stage_arguments(
    recipe: Recipe,
    plan: TrainingPlan,
    folder: Path,
    *,
    num_rows: int,
    epochs: int,
    learning_rate: float | None,
    seed: int,
    has_validation: bool,
) -> SFTConfig:
    """Everything set by us: TRL's own learning rate, precision and checkpointing are for full fine-tuning."""
    train = recipe.train
    per_epoch = steps_per_epoch(plan, num_rows)
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=learning_rate if learning_rate is not None else plan.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=round(per_epoch * epochs * train.warmup),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=_OPTIMIZERS[plan.optimizer, plan.device],
        seed=seed,
        data_seed=seed,
        max_length=plan.max_length,
        packing=plan.packing,
        dataset_kwargs=None if plan.packing else {"skip_prepare_dataset": True},  # rows come ready, and whole
        bf16=plan.compute == "bf16",
        fp16=plan.compute == "fp16",
        use_cpu=plan.device == "cpu",
        **_checkpointing(plan.checkpointing),
        dataloader_pin_memory=False,
        logging_steps=min(_LOG_EVERY, max(1, per_epoch)),
        logging_nan_inf_filter=False,  # a diverged loss must show
        eval_strategy="epoch" if has_validation else "no",
        save_strategy="epoch",
        save_total_limit=2,  # the best one and the last
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False,
        report_to="none",
        disable_tqdm=True,
    )
    # Where there are more GPUs the trainer would spread each batch over all of them, which TRL refuses.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _checkpointing(is_on: bool) -> dict[str, bool]:
    """The setting by the name that the installed version has for it."""
    new = "activation_checkpointing"
    return {new if new in SFTConfig.__dataclass_fields__ else "gradient_checkpointing": is_on}


def steps_per_epoch(plan: TrainingPlan, num_rows: int) -> int:
    """Optimizer steps, without packing."""
    return math.ceil(math.ceil(num_rows / plan.micro_batch) / plan.accumulation)

"""Trains one adapter from its recipe with TRL and PEFT."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loraplex_trainer.train.tokens import TokenRow, read_training_rows
from loraplex_trainer.errors import TrainingDivergedError
from loraplex_trainer.libraries import prepare_libraries
from loraplex_trainer.recipe.document import Recipe, read_recipe

_VERSIONED = ("torch", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """One look at a running training."""

    step: int
    num_steps: int
    loss: float  # mean since the last look


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did."""

    package: Path
    num_rows: int
    num_steps: int
    final_loss: float
    seconds: float
    seed: int
    versions: dict[str, str]


def train_recipe(
    recipe_path: Path,
    output: Path,
    progress: Callable[[TrainProgress], None] | None = None,
    base_folder: Path | None = None,
) -> TrainReport:
    """Train and write the package into `output`.

    `base_folder` replaces the recipe's base, e.g. where it is already converted. The same recipe, data and
    seed give the same bytes on one CPU; on a GPU, nearly. Raises RecipeError, TrainingDataError,
    TrainingDivergedError, BaseModelError.
    """
    recipe = read_recipe(recipe_path)
    prepare_libraries()
    from loraplex_trainer.base_model import load_tokenizer

    base = base_folder or _resolve_base(recipe)
    train_file = recipe_path.parent / recipe.data.train
    tokenizer = load_tokenizer(base)
    rows = read_training_rows(train_file, tokenizer, recipe.system, recipe.train.max_length)
    started = time.monotonic()
    tensors, num_steps, final_loss = _optimize(recipe, rows, tokenizer, base, progress)
    report = TrainReport(
        package=output,
        num_rows=len(rows),
        num_steps=num_steps,
        final_loss=final_loss,
        seconds=round(time.monotonic() - started, 1),
        seed=recipe.train.seed,
        versions={name: version(name) for name in _VERSIONED},
    )
    _package(recipe, tensors, base, train_file, report)
    return report


def _resolve_base(recipe: Recipe) -> Path:
    from loraplex_server.base.resolve import resolve_base

    return resolve_base(recipe.base)


def _optimize(
    recipe: Recipe,
    rows: list[TokenRow],
    tokenizer: Any,
    base: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> tuple[dict[str, Any], int, float]:
    """Adapter tensors, number of optimizer steps, and the last logged loss."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    from loraplex_trainer.base_model import default_device, load_for_training
    from loraplex_trainer.train.callbacks import ProgressCallback

    device = default_device()
    set_seed(recipe.train.seed)  # before the adapter's random A matrices are made
    model = load_for_training(base, recipe.quant, device)
    watcher = ProgressCallback(progress)
    with tempfile.TemporaryDirectory(prefix="loraplex-train-") as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(
                recipe, Path(scratch), math.ceil(len(rows) / recipe.train.batch_size), device.type
            ),
            train_dataset=Dataset.from_list([asdict(row) for row in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=recipe.lora.rank,
                lora_alpha=recipe.lora.alpha,
                lora_dropout=recipe.lora.dropout,
                target_modules=list(recipe.lora.target_modules),
                bias="none",
                task_type="CAUSAL_LM",
            ),
            callbacks=[watcher],
        )
        trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
        trainer.train()
        return get_peft_model_state_dict(trainer.model), trainer.state.global_step, watcher.last_loss


def _arguments(recipe: Recipe, scratch: Path, steps_per_epoch: int, device_type: str) -> Any:
    from trl import SFTConfig

    train = recipe.train
    return SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(steps_per_epoch * train.epochs * train.warmup_share),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        data_seed=train.seed,
        max_length=train.max_length,
        packing=False,
        bf16=device_type == "cuda",
        use_cpu=device_type == "cpu",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=10,
        logging_nan_inf_filter=False,  # a diverged loss must show
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _package(
    recipe: Recipe, tensors: dict[str, Any], base: Path, train_file: Path, report: TrainReport
) -> None:
    from loraplex_server.base.fingerprint import fingerprint, template_hash, tokenizer_hash
    from loraplex_trainer.packaging.package import write_package

    if not math.isfinite(report.final_loss):
        raise TrainingDivergedError("the loss is not finite any more; lower train.learning_rate")
    write_package(
        report.package,
        recipe,
        tensors,
        base={
            "id": recipe.base,
            "fingerprint": fingerprint(base),
            "template_sha256": template_hash(base),
            "tokenizer_sha256": tokenizer_hash(base),
            "trained_on": recipe.quant,
        },
        training={
            "data_sha256": hashlib.sha256(train_file.read_bytes()).hexdigest(),
            "num_rows": report.num_rows,
            "num_steps": report.num_steps,
            "final_loss": round(report.final_loss, 6),
            "seed": report.seed,
            "versions": report.versions,
        },
    )

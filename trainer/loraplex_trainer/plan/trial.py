"""Two real optimizer steps of a plan, in the process that calls it; meant to be a process of its own."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex_trainer.plan.peak import peak_bytes
from loraplex_trainer.plan.training_plan import TrainingPlan

NUM_STEPS = 2  # the first makes the optimizer's states, the second meets them
_SEED = 42


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured, loading included."""

    peak_bytes: int
    step_seconds: float  # of one optimizer step, all of its micro-batches


def run_trial(plan: TrainingPlan, base_folder: Path, dropout: float) -> Trial:
    """Train on random rows of the planned length, each token of them with loss: the worst case of the plan."""
    from loraplex_trainer.libraries import prepare_libraries

    prepare_libraries()
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback
    from trl import SFTTrainer

    model = _load(plan, base_folder)
    with tempfile.TemporaryDirectory(prefix="loraplex-trial-") as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(plan, scratch),
            train_dataset=_random_rows(plan, model.config.vocab_size),
            processing_class=AutoTokenizer.from_pretrained(base_folder, local_files_only=True),
            peft_config=LoraConfig(
                r=plan.rank,
                lora_alpha=plan.alpha,
                lora_dropout=dropout,
                target_modules=list(plan.target_modules),
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        clock = _StepClock()
        trainer.add_callback(clock.callback())
        trainer.train()
    return Trial(peak_bytes(plan.device, plan.memory.context), clock.last_seconds * plan.accumulation)


def _load(plan: TrainingPlan, folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from loraplex_trainer.plan.quantization import quantization_config

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    options: dict[str, Any] = {}
    config = quantization_config(plan)
    if config is not None:
        options = {"quantization_config": config, "device_map": {"": plan.device}}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtypes[plan.compute], local_files_only=True, **options
    )
    return model if options else model.to(plan.device)


def _random_rows(plan: TrainingPlan, vocab_size: int) -> Any:
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(_SEED)
    shape = (NUM_STEPS * plan.micro_batch, plan.planned_tokens or plan.max_length)
    ids = torch.randint(0, vocab_size, shape, generator=generator).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def _arguments(plan: TrainingPlan, scratch: str) -> Any:
    from trl import SFTConfig

    optimizers = {
        "adamw": "adamw_torch",
        "adamw_8bit": "adamw_bnb_8bit",
        "paged_adamw_8bit": "paged_adamw_8bit",
    }
    return SFTConfig(
        output_dir=scratch,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=plan.micro_batch,
        learning_rate=plan.learning_rate,
        optim=optimizers[plan.optimizer],
        gradient_checkpointing=plan.checkpointing,
        bf16=plan.compute == "bf16",
        fp16=plan.compute == "fp16",
        use_cpu=plan.device == "cpu",
        max_length=plan.max_length,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=NUM_STEPS + 1,
        disable_tqdm=True,
        seed=_SEED,
    )


class _StepClock:
    """Times the last step."""

    def __init__(self) -> None:
        self.last_seconds = 0.0
        self._began = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock._began = time.monotonic()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.last_seconds = time.monotonic() - clock._began

        return Callback()

"""The same base and adapters in transformers and PEFT, as their documentation has one use them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.subject import Facts
from benchmarks.workload import Run, Work


class _TokenClock(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Notes when each token of a batch was ready, and never stops it."""

    def __init__(self) -> None:
        self.moments_s: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.moments_s.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class TransformersSubject:
    """`generate`, greedy, of the base or of a PEFT model around it. Implements `benchmarks.subject.Subject`."""

    def __init__(self, base: Path, dtype: str, packages: Mapping[str, Path]) -> None:
        """
        dtype     a floating dtype of torch, for the base and the adapters
        packages  adapter name -> PEFT folder; empty: no PEFT at all
        """
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self._dtype = dtype
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True
        )
        if packages:
            self._model = _with_adapters(self._model, packages)
        self._model.eval()
        self._model.generation_config.eos_token_id = None  # every row runs to its last token
        self._model.generation_config.pad_token_id = 0

    def facts(self) -> Facts:
        return {
            "dtype": self._dtype,
            "transformers": transformers.__version__,
            "peft": version("peft"),
            "threads": torch.get_num_threads(),
        }

    def run(self, work: Work) -> Run:
        """One `generate` of the whole batch; its prompts have one length, so nothing is padded."""
        clock = _TokenClock()
        options: dict[str, Any] = {}
        adapters = [row.adapter for row in work.rows]
        if len(set(adapters)) > 1:
            options["adapter_names"] = adapters  # PEFT's mixed batch
        elif adapters[0]:
            self._model.set_adapter(adapters[0])
        started_s = time.perf_counter()
        token_ids = torch.tensor([row.prompt.token_ids for row in work.rows])
        output = self._model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=work.num_tokens,
            do_sample=False,
            stopping_criteria=[clock],
            **options,
        )
        total_s = time.perf_counter() - started_s
        completions = output[:, token_ids.shape[1] :]
        if completions.shape[1] != work.num_tokens:
            raise RuntimeError(f"generate gave {completions.shape[1]} of {work.num_tokens} tokens")
        return Run(
            total_s=total_s,
            num_tokens=completions.numel(),
            decode_s=clock.moments_s[-1] - clock.moments_s[0],
            num_decode_tokens=completions[:, 1:].numel(),
            first_token_ids=tuple(completions[:, 0].tolist()),
        )

    def close(self) -> None:
        """Nothing outlives the process."""


def _with_adapters(model: Any, packages: Mapping[str, Path]) -> Any:
    import peft  # some seconds, which the base alone does without

    for name, package in packages.items():
        # Left alone, PEFT would keep the adapters in fp32 and convert every activation: slower.
        options = {"adapter_name": name, "autocast_adapter_dtype": False}
        if isinstance(model, peft.PeftModel):
            model.load_adapter(package, **options)
        else:
            model = peft.PeftModel.from_pretrained(model, package, **options)
    return model

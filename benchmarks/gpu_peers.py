"""The same work on the same weights in transformers and PEFT, in this process."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_base import RandomWeights
from benchmarks.shapes import SHAPES


class TransformersPeer:
    """A Hugging Face model over a bench's weights; NF4 through bitsandbytes, adapters through PEFT."""

    def __init__(self, shape: str, weights: RandomWeights, quantization: str) -> None:
        """`quantization` is bf16 or nf4."""
        from transformers import AutoConfig, AutoModelForCausalLM

        fields = dict(SHAPES[shape])
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.to_empty(device="cuda")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(weights.tensor(name))
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to("cuda")  # its buffers were empty
        if quantization == "nf4":
            _quantize_linears(model)
        self.model: Any = model.eval()
        self._vocab_size: int = config.vocab_size

    def add_adapters(self, names: list[str], rank: int) -> None:
        """Random adapters on all linear layers of the decoder."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(self.model, config, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, config)
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to("cuda", torch.bfloat16).normal_(0.0, 0.01)
        self.model.eval()

    def decode_ms(
        self, rows: int, prompt_tokens: int, output_tokens: tuple[int, int], adapters: list[str] | None = None
    ) -> float:
        """Milliseconds per step, from the difference of two output lengths; `adapters` in turn over the rows."""
        self._generate(rows, prompt_tokens, 4, adapters)
        seconds = [self._generate(rows, prompt_tokens, length, adapters) for length in output_tokens]
        return (seconds[1] - seconds[0]) / (output_tokens[1] - output_tokens[0]) * 1e3

    def close(self) -> None:
        """Free the device's memory."""
        del self.model
        gc.collect()
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(
        self, rows: int, prompt_tokens: int, output_tokens: int, adapters: list[str] | None
    ) -> float:
        ids = torch.randint(1000, self._vocab_size, (rows, prompt_tokens), device="cuda")
        options: dict[str, Any] = {}
        if adapters:
            options["adapter_names"] = [adapters[row % len(adapters)] for row in range(rows)]
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            min_new_tokens=output_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - started


def _quantize_linears(model: Any) -> None:
    """Replace the decoder's linear layers by bitsandbytes' in NF4 with double quantization, one by one."""
    import bitsandbytes as bnb

    for name, module in list(model.model.named_modules()):
        if not isinstance(module, torch.nn.Linear):
            continue
        quantized = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        )
        quantized.weight = bnb.nn.Params4bit(
            _detached(module.weight), requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to("cuda")
        if module.bias is not None:
            quantized.bias = torch.nn.Parameter(_detached(module.bias), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, quantized)


def _detached(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu")

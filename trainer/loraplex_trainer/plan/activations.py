"""What autograd keeps of a forward pass, and what one backward step needs besides; bytes.

Follows transformers' Llama-like layers with scaled_dot_product_attention, PEFT's LoRA layers, bitsandbytes' products
and TRL's projection in tiles. Frozen products keep nothing: the gradient of their input needs only their weight. A test
compares `layer_bytes_per_token` with what autograd really saves.
"""

from __future__ import annotations

from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_setup import TrainingSetup

_FP32 = 4
# TRL projects at most this many tokens onto at most this many words of the vocabulary at once.
_TILE_TOKENS, _TILE_WORDS = 4096, 32_768
# A GPU folds a tile in place. Without Triton, torch makes it out of place: nine tiles are alive at once, and a mask.
_CPU_TILES = 9.25
_CUDA_DROPOUT_MASK_BYTES = 1  # a boolean; the CPU keeps noise of the dtype that is dropped from
# bitsandbytes' int8 product holds its input as int8 and fp16, and the outliers' columns apart.
_INT8_INPUT_BYTES = 5


def layer_bytes_per_token(shape: ModelShape, setup: TrainingSetup) -> int:
    """Saved for the backward pass of one layer."""
    width, inner = shape.hidden_size, shape.intermediate_size
    norms = 2 * _FP32 * width  # computed in fp32 whatever the dtype
    mlp = 3 * setup.compute_bytes * inner  # gate, its activation, up
    return norms + mlp + _attention_bytes(shape, setup) + _adapter_inputs(shape, setup)


def _attention_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Queries, keys, values, output, the softmax's normalizers, and each layer's copy of the mask."""
    keys = (
        shape.query_size if setup.has_mask else shape.key_size
    )  # a mask makes transformers repeat the heads
    mask = 0
    if setup.has_mask:
        mask = setup.compute_bytes * (setup.tokens if setup.packing else setup.row_tokens)
    return setup.compute_bytes * 2 * (shape.query_size + keys) + _FP32 * shape.num_heads + mask


def _adapter_inputs(shape: ModelShape, setup: TrainingSetup) -> int:
    """What the adapters' products keep of their inputs, and int8 products of theirs."""
    inputs = {module: shape.module_shape(module)[0] for module in setup.targets}
    middle = len(inputs) * setup.rank * setup.lora_input_bytes
    if setup.dropout > 0:
        return (
            middle
            + sum(inputs.values()) * (_mask_bytes(setup) + setup.lora_input_bytes)
            + _int8_inputs(shape, setup)
        )
    if setup.casts_lora_input:
        return middle + sum(inputs.values()) * setup.lora_input_bytes + _int8_inputs(shape, setup)
    # The input itself is kept, once for the modules that share it; that of o_proj is kept by attention anyway.
    shared = setup.compute_bytes * (
        _any_of(setup, "q_proj", "k_proj", "v_proj") * shape.hidden_size
        + _any_of(setup, "gate_proj", "up_proj") * shape.hidden_size
        + _any_of(setup, "down_proj") * shape.intermediate_size
    )
    return middle + max(shared, _int8_inputs(shape, setup))


def _mask_bytes(setup: TrainingSetup) -> int:
    if setup.device == "cuda":
        return _CUDA_DROPOUT_MASK_BYTES
    return setup.lora_bytes


def _int8_inputs(shape: ModelShape, setup: TrainingSetup) -> int:
    """An 8-bit product keeps its input, although it does not need it."""
    if setup.method != "lora-int8":
        return 0
    return setup.compute_bytes * (2 * shape.hidden_size + shape.intermediate_size)


def _any_of(setup: TrainingSetup, *modules: str) -> bool:
    return any(module in setup.targets for module in modules)


def backward_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Gradients on the way through the widest module, and one weight that is dequantized for it."""
    inner = max(shape.intermediate_size, shape.query_size)
    per_token = inner * (4 * setup.compute_bytes + _FP32)
    if setup.method == "lora-int8":
        per_token += inner * _INT8_INPUT_BYTES
    weight = shape.intermediate_size * shape.hidden_size * setup.compute_bytes if setup.is_quantized else 0
    return setup.tokens * per_token + weight


def logits_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """One tile of logits, and the last hidden states with their gradient, as if every token were trained."""
    tile = min(setup.tokens, _TILE_TOKENS) * min(shape.vocab_size, _TILE_WORDS)
    tiles = setup.compute_bytes if setup.device == "cuda" else _CPU_TILES * _FP32
    hidden = setup.tokens * shape.hidden_size * (2 * _FP32 + 2 * setup.compute_bytes)
    return int(tile * tiles) + hidden


def activation_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """What is alive besides `logits_bytes` at the worst moment.

    That is either the loss, with all that the forward pass saved, or the backward pass of one layer; with checkpointing
    a layer's input is all that is saved of it, and one layer at a time is computed again.
    """
    one_layer = setup.tokens * layer_bytes_per_token(shape, setup)
    logits = logits_bytes(shape, setup)
    if setup.checkpointing:
        at_loss = setup.tokens * shape.num_layers * shape.hidden_size * setup.compute_bytes
        in_backward = at_loss + one_layer + backward_bytes(shape, setup)
    else:
        at_loss = shape.num_layers * one_layer
        in_backward = at_loss + backward_bytes(shape, setup)
    return max(at_loss, in_backward - logits)

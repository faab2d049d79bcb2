"""Norms, activations, rotation, quantization and embedding: kernels against their references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraplex_server.kernels.embedding import embed, embed_reference
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.norm import rms_norm, rms_norm_reference
from loraplex_server.kernels.pinned_read import read_pinned
from loraplex_server.kernels.quantize import QuantizedRows, quantize_rows, quantize_rows_reference
from loraplex_server.kernels.rope import rope_and_write, rope_and_write_reference
from loraplex_server.kernels.swiglu import swiglu, swiglu_reference

EPS = 1e-5
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 1e-6}


def relative_error(out: Tensor, reference: Tensor) -> float:
    return float((out.cpu().double() - reference.cpu().double()).norm() / reference.cpu().double().norm())


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(*shape).to(dtype).to(device)


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def poisoned_rows(rows: int, features: int, device: torch.device) -> QuantizedRows:
    values = torch.full((rows, features), -128, dtype=torch.int8, device=device)
    return QuantizedRows(values, poisoned(rows, 1, dtype=torch.float32, device=device))


def assert_quantizes(quantized: QuantizedRows, rows: Tensor) -> None:
    """The integers may differ by one where a quotient lies between two of them."""
    values, scales = quantize_rows_reference(rows)
    assert torch.allclose(quantized.scales, scales, rtol=1e-6)
    difference = (quantized.values.int() - values.int()).abs()
    assert int(difference.max()) <= 1
    assert (
        int(difference.sum()) <= 2 + rows.numel() // 100
    )  # bf16 has few digits: quotients often lie right there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [72, 576])
@pytest.mark.parametrize("has_delta", [False, True])
def test_the_norm_matches_the_reference(
    dtype: torch.dtype, features: int, has_delta: bool, device: torch.device
) -> None:
    hidden = random(5, features, dtype=dtype, device=device)
    delta = random(5, features, dtype=dtype, device=device) if has_delta else None
    weight = random(features, dtype=dtype, device=device)
    stream = hidden.clone()
    expected, *_ = rms_norm_reference(stream, delta, weight, EPS)
    out = poisoned(5, features, dtype=dtype, device=device)
    quantized = poisoned_rows(5, features, device)

    rms_norm(hidden, delta, weight, EPS, out, quantized)

    assert torch.equal(hidden, stream)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert_quantizes(quantized, out)


def test_the_norm_writes_only_what_is_asked_for(device: torch.device) -> None:
    hidden = random(3, 64, dtype=torch.bfloat16, device=device)
    weight = random(64, dtype=torch.bfloat16, device=device)
    both, out = poisoned_rows(3, 64, device), torch.empty_like(hidden)
    rms_norm(hidden, None, weight, EPS, out, both)
    alone = poisoned_rows(3, 64, device)

    rms_norm(hidden, None, weight, EPS, None, alone)

    assert torch.equal(alone.values, both.values)
    assert torch.equal(alone.scales, both.scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_rows_match_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    x = random(6, 200, dtype=dtype, device=device) * torch.logspace(-6, 4, 6, device=device).unsqueeze(1).to(
        dtype
    )
    x[2] = 0
    quantized = poisoned_rows(6, 200, device)

    quantize_rows(x, quantized)

    assert_quantizes(quantized, x)
    assert quantized.values[2].eq(0).all()


@pytest.mark.parametrize("spoiled", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_quantized_rows_make_no_numbers_of_what_is_none(spoiled: float, device: torch.device) -> None:
    x = random(3, 200, dtype=torch.float32, device=device)
    x[1, 77] = spoiled
    quantized = poisoned_rows(3, 200, device)

    quantize_rows(x, quantized)

    assert quantized.scales.view(-1).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_matches_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    gate_up = 3 * random(19, 2 * 200, dtype=dtype, device=device)
    expected = swiglu_reference(gate_up)
    tiled = poisoned(19, 200, dtype=dtype, device=device)
    by_row = poisoned(19, 200, dtype=dtype, device=device)
    quantized = poisoned_rows(19, 200, device)

    swiglu(gate_up, tiled, None)
    swiglu(gate_up, by_row, quantized)

    assert relative_error(tiled, expected) < TOLERANCE[dtype]
    assert relative_error(by_row, expected) < TOLERANCE[dtype]
    assert_quantizes(quantized, by_row)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (9, 3, 64)])
def test_rotation_and_pages_match_the_reference(
    has_norms: bool, num_heads: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> None:
    dtype, rows = torch.bfloat16, 19
    qkv = random(rows, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype, device=device)
    angles = torch.rand(50, head_dim // 2, device=device) * 6
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(50, (rows,), device=device)
    slots = torch.randperm(32, device=device)[:rows]
    slots[3] = -1
    norms = None
    if has_norms:
        norms = HeadNorms(
            random(head_dim, dtype=dtype, device=device), random(head_dim, dtype=dtype, device=device), EPS
        )
    cache = poisoned(8, 4, 2 * num_kv_heads * head_dim, dtype=dtype, device=device)
    expected, expected_cache = qkv.clone(), cache.clone()
    arguments = (cos, sin, positions, slots)
    rope_and_write_reference(expected, *arguments, expected_cache, num_heads, num_kv_heads, norms)

    rope_and_write(qkv, *arguments, cache, num_heads, num_kv_heads, norms)

    assert relative_error(qkv, expected) < TOLERANCE[dtype]
    assert torch.equal(cache.isnan(), expected_cache.isnan())
    assert relative_error(cache.nan_to_num(), expected_cache.nan_to_num()) < TOLERANCE[dtype]


RANKS: list[tuple[int, ...]] = [(8, 8, 8), (40, 0, 16), (1, 3, 7)]


def test_lora_within_the_rotation_equals_lora_before_it(device: torch.device) -> None:
    check_lora_within_rotation(25, (4, 2, 32), device)


def test_lora_within_swiglu_equals_lora_before_it(device: torch.device) -> None:
    check_lora_within_swiglu(25, 264, device)


def check_lora_within_rotation(rows: int, heads: tuple[int, int, int], device: torch.device) -> None:
    num_heads, num_kv_heads, head_dim = heads
    kv_width = num_kv_heads * head_dim
    qkv = random(rows, num_heads * head_dim + 2 * kv_width, dtype=torch.bfloat16, device=device)
    delta = random(*qkv.shape, dtype=torch.bfloat16, device=device)
    added = qkv.float() + delta.float()
    angles = torch.rand(50, head_dim // 2, device=device) * 6
    positions = torch.randint(50, (rows,), device=device)
    arguments = (angles.cos(), angles.sin(), positions, torch.randperm(rows, device=device))
    cache = poisoned(-(-rows // 4), 4, 2 * kv_width, dtype=torch.bfloat16, device=device)
    expected_cache = cache.clone()
    rope_and_write_reference(added, *arguments, expected_cache, num_heads, num_kv_heads, None)

    rope_and_write(qkv, *arguments, cache, num_heads, num_kv_heads, None, delta)

    queries = num_heads * head_dim
    assert relative_error(qkv[:, :queries], added[:, :queries]) < TOLERANCE[torch.bfloat16]
    written = cache.view(-1, 2 * kv_width)[:rows], expected_cache.view(-1, 2 * kv_width)[:rows]
    assert relative_error(written[0][arguments[3]], written[1][arguments[3]]) < TOLERANCE[torch.bfloat16]


def check_lora_within_swiglu(rows: int, features: int, device: torch.device) -> None:
    gate_up = random(rows, 2 * features, dtype=torch.bfloat16, device=device)
    delta = random(rows, 2 * features, dtype=torch.bfloat16, device=device)
    out = poisoned(rows, features, dtype=torch.bfloat16, device=device)

    swiglu(gate_up, out, None, delta)

    assert relative_error(out, swiglu_reference(gate_up.float() + delta.float())) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_embedding_matches_the_reference(is_quantized: bool, device: torch.device) -> None:
    table, scales = random(40, 72, dtype=torch.bfloat16, device=device), None
    if is_quantized:
        table, scales = quantize_rows_reference(table)
    ids = torch.randint(40, (7,), device=device)
    out = poisoned(7, 72, dtype=torch.bfloat16, device=device)

    embed(torch.where(ids == ids[3], -1, ids), table, scales, out)

    ids[ids == ids[3].clone()] = 0  # where there is no token, any will do
    assert torch.equal(out, embed_reference(ids, table, scales, torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 32, 128, 1000])
def test_lora_within_other_kernels_holds_at_real_shapes(rows: int, device: torch.device) -> None:
    check_lora_within_rotation(rows, (32, 8, 128), device)
    check_lora_within_swiglu(rows, 14336, device)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 32, 128, 2000])
def test_norm_and_swiglu_hold_at_real_shapes(rows: int, device: torch.device) -> None:
    hidden = random(rows, 4096, dtype=torch.bfloat16, device=device)
    weight = random(4096, dtype=torch.bfloat16, device=device)
    gate_up = random(rows, 28672, dtype=torch.bfloat16, device=device)
    out, activated = torch.full_like(hidden, torch.nan), torch.full_like(gate_up[:, :14336], torch.nan)
    quantized, wide = poisoned_rows(rows, 4096, device), poisoned_rows(rows, 14336, device)
    expected, *_ = rms_norm_reference(hidden.clone(), None, weight, EPS)

    rms_norm(hidden, None, weight, EPS, out, quantized)
    swiglu(gate_up, activated.contiguous(), wide)

    assert relative_error(out, expected) < TOLERANCE[torch.bfloat16]
    assert_quantizes(quantized, out)
    assert_quantizes(wide, swiglu_reference(gate_up))


@pytest.mark.parametrize("size", [16, 1024, 5008])
def test_what_is_read_from_the_host_is_what_lies_there(size: int, device: torch.device) -> None:
    source = torch.randint(-(2**31), 2**31, (size,), dtype=torch.int32)
    target = torch.full((size + 1,), -7, dtype=torch.int32, device=device)

    read_pinned(target[:size], source.pin_memory() if device.type == "cuda" else source)

    assert torch.equal(target[:size].cpu(), source)
    assert int(target[size]) == -7

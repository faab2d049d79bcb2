"""The fused kernels for CPUs against the plain-torch reference of each operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from loraplex_server.kernels.cpu import launch
from loraplex_server.kernels.cpu.ops import CpuOps
from loraplex_server.kernels.fastest_ops import layer_ops
from loraplex_server.kernels.layer_ops import HeadNorms, Rotation, TorchOps
from loraplex_server.kernels.lora import LoraLayers, LoraPart, LoraProjection, LoraSegment, SegmentedLora
from loraplex_server.kernels.paged_attention import AttentionShape
from loraplex_server.model.batch import DecodeRows, PrefillChunk

EPS = 1e-5
ROWS = [1, 2, 7, 64]
REFERENCE = TorchOps()


@pytest.fixture(params=["one thread", "torch's threads"])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CpuOps:
    """Work of any size on one thread, or spread over all."""
    monkeypatch.setattr(launch, "_MIN_SPREAD", 1 << 60 if request.param == "one thread" else 0)
    torch.manual_seed(0)
    return CpuOps()


def assert_close(ours: Tensor, reference: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


def rotation(rows: int, dim: int) -> Rotation:
    angles = torch.randn(rows, dim // 2) * 100
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def paged_case(
    lengths: list[int], shape: AttentionShape, block_size: int, dtype: torch.dtype
) -> tuple[Tensor, DecodeRows]:
    """A cache of shuffled blocks in which every position that no row may see is NaN."""
    widest = -(-max(lengths) // block_size)
    order = torch.randperm(widest * len(lengths)) + 1
    tables = order.view(len(lengths), widest)
    entry = 2 * shape.num_kv_heads * shape.head_dim
    cache = torch.full((order.numel() + 1, block_size, entry), torch.nan, dtype=dtype)
    for table, length in zip(tables, lengths, strict=True):
        first = max(0, length - shape.sliding_window) if shape.sliding_window else 0
        for position in range(first, length):
            cache[table[position // block_size], position % block_size] = torch.randn(entry).to(dtype)
    return cache, DecodeRows(len(lengths), tables, torch.tensor(lengths), max(lengths))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [17, 576])
@pytest.mark.parametrize("has_delta", [False, True])
def test_the_norm_adds_the_residual_and_equals_the_reference(
    ops: CpuOps, rows: int, width: int, has_delta: bool
) -> None:
    hidden, weight = torch.randn(rows, width), torch.randn(width)
    delta = torch.randn(rows, width) if has_delta else None
    stream = hidden.clone()

    normed = ops.rms_norm(hidden, delta, weight, EPS)

    assert_close(normed, REFERENCE.rms_norm(stream, delta, weight, EPS))
    assert torch.equal(hidden, stream)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [3, 96, 1536])
def test_silu_times_up_equals_the_reference(ops: CpuOps, rows: int, width: int) -> None:
    gate_up = torch.randn(rows, 2 * width) * 20

    assert_close(ops.silu_mul(gate_up), REFERENCE.silu_mul(gate_up))


def test_silu_of_extreme_gates_is_finite_and_right(ops: CpuOps) -> None:
    gate_up = torch.tensor([[-1e30, -200.0, -88.5, 0.0, 88.5, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])

    assert_close(ops.silu_mul(gate_up), torch.tensor([[0.0, 0.0, 0.0, 0.0, 88.5, 1e30]]))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [5, 576])
def test_quantized_rows_are_those_of_the_reference(ops: CpuOps, rows: int, width: int) -> None:
    x = torch.randn(rows, width) * torch.logspace(-20, 20, rows).unsqueeze(1)
    x[0] = 0

    values, scales = ops.quantize_rows(x)

    expected_values, expected_scales = REFERENCE.quantize_rows(x)
    assert_close(scales, expected_scales, 1e-7)
    difference = (values.int() - expected_values.int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) < 1e-3, (
        "only a quotient between two integers may round either way"
    )


@pytest.mark.parametrize("has_bias", [False, True])
def test_scaled_rows_equal_the_reference(ops: CpuOps, has_bias: bool) -> None:
    y, scale, bias = torch.randn(7, 33), torch.rand(7, 1), torch.randn(33) if has_bias else None
    expected = y.clone()
    REFERENCE.scale_rows(expected, scale, bias)

    ops.scale_rows(y, scale, bias)

    assert_close(y, expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dim", [8, 20, 64, 128])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_are_normed_turned_and_stored_as_by_the_reference(
    ops: CpuOps, rows: int, dim: int, has_norms: bool, dtype: torch.dtype
) -> None:
    shape = AttentionShape(6, 2, dim, None)
    qkv, turn = torch.randn(rows, 10 * dim), rotation(rows, dim)
    norms = HeadNorms(torch.randn(dim), torch.randn(dim), EPS) if has_norms else None
    slots = torch.randperm(96)[:rows]
    cache = torch.full((24, 4, 4 * dim), torch.nan, dtype=dtype)
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    REFERENCE.rotate_and_store(expected_qkv, turn, norms, slots, expected_cache, shape)

    ops.rotate_and_store(qkv, turn, norms, slots, cache, shape)

    assert_close(qkv[:, : 6 * dim], expected_qkv[:, : 6 * dim])
    tolerance = 1e-2 if dtype is torch.bfloat16 else 2e-6
    torch.testing.assert_close(cache, expected_cache, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_a_stored_value_is_rounded_to_bf16_as_torch_rounds_it(ops: CpuOps) -> None:
    shape = AttentionShape(1, 1, 64, None)
    qkv = torch.randn(32, 192) * torch.logspace(-38, 38, 32).unsqueeze(1)
    qkv[0, 128:130] = torch.tensor([torch.nan, torch.inf])
    cache = torch.zeros(1, 32, 128, dtype=torch.bfloat16)

    ops.rotate_and_store(qkv, rotation(32, 64), None, torch.arange(32), cache, shape)

    assert torch.allclose(cache[0, :, 64:], qkv[:, 128:].bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (8, 1)])
@pytest.mark.parametrize("dim", [8, 20, 64, 80, 128])
@pytest.mark.parametrize("window", [None, 1, 6, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decode_attention_equals_the_reference_and_reads_nothing_else(
    ops: CpuOps, heads: tuple[int, int], dim: int, window: int | None, dtype: torch.dtype
) -> None:
    shape = AttentionShape(*heads, dim, window)
    cache, decode = paged_case([1, 4, 5, 37, 64], shape, 4, dtype)
    qkv = torch.randn(decode.count, (heads[0] + 2 * heads[1]) * dim)

    attended = ops.attention(qkv, cache, decode, [], shape)

    # The reference multiplies what it masks by zero, and in the cache's dtype.
    clean = torch.nan_to_num(cache.float(), nan=0.0)
    assert_close(attended, REFERENCE.attention(qkv, clean, decode, [], shape), 1e-5)


def test_decode_rows_and_prefill_chunks_share_a_batch(ops: CpuOps) -> None:
    shape = AttentionShape(4, 2, 16, None)
    cache, decode = paged_case([9, 3, 12], shape, 4, torch.float32)
    cache.nan_to_num_()
    qkv = torch.randn(8, 8 * 16)
    decodes = DecodeRows(2, decode.block_tables[:2], decode.context_lengths[:2], 9)
    chunks = [PrefillChunk(2, 8, 6, decode.block_tables[2])]

    attended = ops.attention(qkv, cache, decodes, chunks, shape)

    assert_close(attended, REFERENCE.attention(qkv, cache, decodes, chunks, shape), 1e-5)


@pytest.mark.parametrize("rows", [1, 3, 33])
def test_argmax_is_the_first_of_equals(ops: CpuOps, rows: int) -> None:
    x = torch.randint(-5, 5, (rows, 3001)).float()
    x[0, :] = -torch.inf
    x[rows // 2, [7, 2999]] = 9.0

    assert torch.equal(ops.argmax_rows(x), x.argmax(dim=-1))


def adapter(ranks: list[int], widths: list[int], in_features: int) -> LoraLayers:
    """One layer; a module of rank 0 is left alone."""
    parts, column, first = [], 0, 0
    for rank, width in zip(ranks, widths, strict=True):
        if rank:
            parts.append(LoraPart(column, column + width, first, first + rank, torch.randn(rank, width)))
        column, first = column + width, first + rank
    return LoraLayers([{"qkv": LoraProjection(torch.randn(in_features, first) / 8, tuple(parts))}])


def test_lora_of_decode_rows_and_chunks_equals_the_reference(ops: CpuOps) -> None:
    widths = [40, 24, 7]
    adapters = [adapter(ranks, widths, 48) for ranks in ([8, 8, 8], [3, 0, 16], [0, 1, 0], [64, 64, 64])]
    segments = [
        LoraSegment(0, 1, adapters[0]),
        LoraSegment(1, 4, adapters[1]),
        LoraSegment(6, 8, adapters[2]),
        LoraSegment(8, 12, adapters[3]),
        LoraSegment(12, 30, adapters[1]),
    ]
    x, y = torch.randn(31, 48), torch.randn(31, sum(widths))
    expected = y.clone()
    SegmentedLora(segments).add(0, "qkv", x, expected)

    batch = ops.lora_batch(segments, num_decode_rows=12)
    batch.add(0, "qkv", x, y)
    batch.add(0, "down", x, y)  # which no adapter touches

    assert_close(y, expected, 1e-5)
    assert torch.equal(y[[4, 5, 30]], expected[[4, 5, 30]])


def test_a_row_alone_equals_the_row_in_a_batch_bit_for_bit(ops: CpuOps) -> None:
    shape = AttentionShape(9, 3, 64, None)
    cache, decode = paged_case([70, 33, 8], shape, 32, torch.bfloat16)
    qkv, hidden = torch.randn(3, 15 * 64), torch.randn(3, 576)
    layers = adapter([8, 8, 8], [576, 192, 192], 576)
    lora = ops.lora_batch([LoraSegment(0, 3, layers)], 3)
    alone = DecodeRows(1, decode.block_tables[1:2], decode.context_lengths[1:2], 33)
    own = qkv[1:2].clone()

    together = ops.attention(qkv, cache, decode, [], shape)
    assert torch.equal(ops.attention(own, cache, alone, [], shape), together[1:2])
    lora.add(0, "qkv", hidden, qkv)
    ops.lora_batch([LoraSegment(0, 1, layers)], 1).add(0, "qkv", hidden[1:2], own)
    assert torch.equal(own, qkv[1:2])
    assert torch.equal(ops.silu_mul(own), ops.silu_mul(qkv)[1:2])


def test_the_fused_kernels_serve_fp32_on_a_cpu_and_torch_everything_else() -> None:
    assert isinstance(layer_ops(torch.device("cpu"), torch.float32), CpuOps)
    assert isinstance(layer_ops(torch.device("cpu"), torch.bfloat16), TorchOps)
    assert isinstance(layer_ops(torch.device("cuda"), torch.float32), TorchOps)

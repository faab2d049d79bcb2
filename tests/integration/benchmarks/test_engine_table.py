"""The table of `benchmarks.engine` has a line for every figure, and peers beside what did the same work."""

from __future__ import annotations

from benchmarks.engine_table import lines

FIGURES = {
    "start_seconds": 25.0,
    "weight_bytes": 6 * 2**30,
    "memory_reserved_bytes": 30 * 2**30,
    "memory_plan": "base 5,749 MiB",
    "decode_ms_8_adapters_32_rows": 4.0,
    "idle_share_8_adapters_32_rows": 0.001,
    "bandwidth_share_8_adapters_32_rows": 0.5,
    "total_tokens_per_second_8_adapters_32_rows": 16_000,
    "lora_price_8": 0.05,
    "prefill_tokens_per_second_8_adapters": 36_000,
    "transformers_decode_ms_0_adapters_32_rows": 80.0,
    "peft_decode_ms_8_adapters_32_rows": 500.0,
    "stream_error": "RuntimeError: no room",
}


def test_every_figure_has_a_line_and_a_peer_a_ratio_where_the_work_is_the_same() -> None:
    table = list(lines(FIGURES))

    assert table[1].split() == ["8", "32", "4.000", "50.0%", "0.1%", "16,000"]
    text = "\n".join(table)
    assert "peft, 8 adapters 32 rows: 500.0 ms a step, 125.0 times ours" in text
    assert "transformers, 0 adapters 32 rows: 80.0 ms a step" in text
    assert "80.0 ms a step," not in text, "ours without adapters was not measured"
    for part in (
        "36,000 tokens/s",
        "ranks 8..64, 32 rows: 5.0%",
        "stream: RuntimeError: no room",
        "30.00 GiB",
    ):
        assert part in text

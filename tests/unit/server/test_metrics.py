"""Metrics: their labels are bounded, an adapter's series go with it, and they count what happened."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loraplex_server.engine.messages import EngineReady, EngineStats
from loraplex_server.metrics import MAX_ADAPTER_LABELS, AdapterPlace, Metrics


@pytest.fixture
def deleted() -> set[str]:
    """Adapters that are not registered any more."""
    return set()


@pytest.fixture
def metrics(deleted: set[str]) -> Metrics:
    metrics = Metrics()
    metrics.watch_adapters(lambda: 5, lambda name: name not in deleted, num_leases=lambda: 6)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"loraplex_{name}", labels)


def adapter_labels(metrics: Metrics) -> dict[str, set[str]]:
    """Metric -> values of its label `adapter`."""
    return {
        family.name: labels
        for family in metrics.registry.collect()
        if (labels := {s.labels["adapter"] for s in family.samples if "adapter" in s.labels})
    }


def end_request(metrics: Metrics, adapter: str, finish: str = "stop") -> None:
    metrics.request_ended(adapter, finish, seconds=1.5, prompt_tokens=10, completion_tokens=4)


def test_a_request_counts_for_its_adapter_and_for_the_base_if_it_has_none(metrics: Metrics) -> None:
    end_request(metrics, "finance/faq")
    end_request(metrics, "finance/faq", "length")
    end_request(metrics, "")

    assert value(metrics, "requests_total", adapter="finance/faq", finish="stop") == 1
    assert value(metrics, "requests_total", adapter="finance/faq", finish="length") == 1
    assert value(metrics, "prompt_tokens_total", adapter="finance/faq") == 20
    assert value(metrics, "completion_tokens_total", adapter="finance/faq") == 8
    assert value(metrics, "requests_total", adapter="base", finish="stop") == 1
    assert value(metrics, "request_duration_seconds_count") == 3
    assert value(metrics, "request_duration_seconds_sum") == 4.5


def test_adapters_past_the_bound_share_one_label(metrics: Metrics) -> None:
    for index in range(MAX_ADAPTER_LABELS + 50):
        end_request(metrics, f"adapter-{index}")
    end_request(metrics, "adapter-0")
    end_request(metrics, "")

    for labels in adapter_labels(metrics).values():
        assert len(labels) == MAX_ADAPTER_LABELS + 2
    assert value(metrics, "requests_total", adapter="other", finish="stop") == 50
    assert value(metrics, "requests_total", adapter="adapter-0", finish="stop") == 2


def test_a_deleted_adapter_takes_its_series_along_and_makes_room(metrics: Metrics) -> None:
    for index in range(MAX_ADAPTER_LABELS):
        end_request(metrics, f"adapter-{index}")
    end_request(metrics, "adapter-7", "length")

    metrics.adapter_deleted("adapter-7")

    assert all("adapter-7" not in labels for labels in adapter_labels(metrics).values())
    end_request(metrics, "new")
    assert value(metrics, "requests_total", adapter="new", finish="stop") == 1


def test_deleting_an_adapter_that_was_never_asked_is_no_error(metrics: Metrics) -> None:
    metrics.adapter_deleted("unused")
    assert adapter_labels(metrics) == {}


def test_a_request_that_outlives_its_adapter_does_not_bring_its_label_back(
    metrics: Metrics, deleted: set[str]
) -> None:
    end_request(metrics, "gone")
    deleted.add("gone")
    metrics.adapter_deleted("gone")

    end_request(metrics, "gone")

    assert all(labels == {"other"} for labels in adapter_labels(metrics).values())


def test_a_step_of_the_engine_sets_gauges_and_counts_what_it_did(metrics: Metrics) -> None:
    stats = EngineStats(
        num_running=3,
        num_waiting=2,
        kv_blocks_used=17,
        kv_blocks_cached=9,
        adapter_slots_used=4,
        adapter_slots_pinned=1,
        adapter_leases=3,
        step_seconds=0.02,
        batch_sequences=3,
        batch_adapters=2,
        prefix_hit_tokens=32,
        preemptions=1,
        adapter_load_seconds=[0.1, 0.2],
        adapter_copy_seconds=[0.01, 0.02],
        adapter_evictions=1,
        adapters_loading=5,
        arena_bytes_used=600,
        host_cache_bytes_used=700,
        compacted_bytes=80,
        device_idle_seconds=0.25,
    )
    metrics.engine_step(stats)
    metrics.engine_step(stats)

    gauges = {
        "running_sequences": 3,
        "waiting_sequences": 2,
        "kv_blocks_used": 17,
        "kv_blocks_cached": 9,
        "adapter_slots_used": 4,
        "adapter_slots_pinned": 1,
        "adapter_leases": 3,
        "package_leases": 6,
        "adapters_loading": 5,
        "adapter_arena_used_bytes": 600,
        "host_cache_used_bytes": 700,
    }
    counts = {
        "prefix_cache_hit_tokens_total": 64,
        "preemptions_total": 2,
        "adapter_loads_total": 4,
        "device_idle_seconds_total": 0.5,
        "adapter_evictions_total": 2,
        "adapter_load_seconds_count": 4,
        "adapter_copy_seconds_count": 4,
        "adapter_arena_moved_bytes_total": 160,
        "step_seconds_count": 2,
        "batch_sequences_sum": 6,
        "batch_adapters_sum": 4,
    }
    for name, expected in (gauges | counts).items():
        assert value(metrics, name) == expected, name


def test_a_message_without_a_step_is_no_empty_batch(metrics: Metrics) -> None:
    metrics.engine_step(EngineStats(num_waiting=1))
    assert value(metrics, "step_seconds_count") == value(metrics, "batch_sequences_count") == 0
    assert value(metrics, "waiting_sequences") == 1


def test_where_an_adapter_is_is_told_as_long_as_it_has_a_label(metrics: Metrics, deleted: set[str]) -> None:
    """vLLM #45325: an adapter left the metrics the moment it was idle, so that routers sent its traffic elsewhere."""
    places = {"shop": AdapterPlace(2, 0.5, 0.25)}
    metrics.watch_adapters(lambda: 1, lambda name: name not in deleted, places.get)
    end_request(metrics, "shop")
    end_request(metrics, "elsewhere")

    assert value(metrics, "adapter_tier", adapter="shop") == 2
    assert value(metrics, "adapter_last_read_seconds", adapter="shop") == 0.5
    assert value(metrics, "adapter_last_copy_seconds", adapter="shop") == 0.25
    assert value(metrics, "adapter_tier", adapter="elsewhere") is None
    metrics.adapter_deleted("shop")
    assert value(metrics, "adapter_tier", adapter="shop") is None


def test_latencies_and_refusals_are_counted(metrics: Metrics) -> None:
    metrics.first_token(0.3, queue_seconds=0.1)
    metrics.inter_token(0.02)
    metrics.rejected("QUEUE_FULL")
    metrics.rpc_ended("Generate", "OK", 1.0)

    assert value(metrics, "time_to_first_token_seconds_sum") == 0.3
    assert value(metrics, "queue_seconds_sum") == 0.1
    assert value(metrics, "inter_token_latency_seconds_count") == 1
    assert value(metrics, "rejects_total", reason="QUEUE_FULL") == 1
    assert value(metrics, "rpc_duration_seconds_count", method="Generate", code="OK") == 1
    assert value(metrics, "adapters_registered") == 5


def test_each_start_of_an_engine_is_counted_and_what_it_loaded_is_shown(metrics: Metrics) -> None:
    ready = EngineReady(
        base_fingerprint="f" * 64,
        architecture="LlamaForCausalLM",
        quantization="int8",
        quantization_reason="asked for",
        device="cpu",
        weight_bytes=1,
        parameter_count=1,
        max_context_tokens=1,
        num_blocks=99,
        block_size=32,
        adapter_slots=16,
        adapter_arena_elements=1000,
        adapter_arena_bytes=4000,
        adapter_element_bytes=4,
        adapter_layout="cpu-1-float32-f",
        host_cache_bytes=8000,
        max_running=1,
        load_seconds=1.0,
        eos_token_ids=(2,),
    )
    for _ in range(2):
        metrics.engine_ready(ready, "0.1.0")

    assert value(metrics, "engine_starts_total") == 2
    assert value(metrics, "kv_blocks") == 99
    assert value(metrics, "adapter_slots") == 16
    build = {
        "version": "0.1.0",
        "architecture": "LlamaForCausalLM",
        "quantization": "int8",
        "device": "cpu",
        "base_fingerprint": "f" * 64,
    }
    assert value(metrics, "build_info", **build) == 1


def test_metrics_are_served_over_http_as_prometheus_reads_them(metrics: Metrics) -> None:
    end_request(metrics, "a")
    port = metrics.serve(0, "127.0.0.1")

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["loraplex_requests"].samples[0].labels == {"adapter": "a", "finish": "stop"}
    assert all(name.startswith("loraplex_") for name in families)
    assert all(family.documentation for family in families.values())


def test_two_servers_in_one_process_share_no_metrics(metrics: Metrics) -> None:
    end_request(metrics, "a")
    assert adapter_labels(Metrics()) == {}

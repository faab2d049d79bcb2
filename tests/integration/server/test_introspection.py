"""What the server says of itself: info, health, reflection, metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loraplex_client import AsyncLoraplexClient, LoraplexApiError, LoraplexClient, NotFoundError
from loraplex_server.metrics import Metrics
from tests.integration.conftest import ADAPTERS, StartServer
from tests.integration.health import SERVING
from tests.integration.live_server import LiveServer, eventually
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import GREEDY, PROMPT, answer_all, begin
from tests.integration.wild_messages import METHODS

SERVICES = tuple(f"loraplex.v1.{name}Service" for name in ("Inference", "Adapter", "Ops", "Training"))


def test_the_server_describes_its_base_its_limits_and_its_load(
    tight_server: LiveServer, tight_client: LoraplexClient, tiny_base: Path
) -> None:
    info = tight_client.server_info()

    assert info.base_model.id == str(tiny_base)
    assert info.base_model.architecture == "LlamaForCausalLM"
    assert info.base_model.quantization == "fp32"
    assert info.base_model.device == "cpu"
    assert len(info.base_model.fingerprint) == 64
    assert info.base_model.weight_bytes >= 4 * info.base_model.parameter_count > 0
    assert info.limits.max_context_tokens == 8192
    assert info.limits.max_running == 2
    assert info.limits.max_waiting == 3
    assert info.limits.adapter_slots == 2
    assert info.limits.max_lora_rank == 16
    assert info.limits.max_adapter_bytes == 100_000
    assert info.load.kv_blocks_total == 256
    assert info.load.adapters_registered == 3
    assert info.load.resident_bytes > 50 * 2**20
    assert info.uptime_seconds > 0
    assert info.version


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_every_service_is_healthy(server: LiveServer, service: str) -> None:
    with raw_channel(server) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))

    assert response.status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(server: LiveServer) -> None:
    with raw_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        failure = failure_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="red")))

    assert failure.code is grpc.StatusCode.NOT_FOUND
    counted = {"method": "Check", "code": "NOT_FOUND"}
    eventually(lambda: server.metric("loraplex_rpc_duration_seconds_count", **counted) >= 1)


def test_reflection_lists_every_service_and_describes_every_method(server: LiveServer) -> None:
    request = reflection_pb2.ServerReflectionRequest
    with raw_channel(server) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        (listed,) = ask(iter([request(list_services="")]))
        described = list(ask(iter([request(file_containing_symbol=name) for name in SERVICES])))

    names = {service.name for service in listed.list_services_response.service}
    assert names == {method.descriptor.containing_service.full_name for method in METHODS}
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in described)


@pytest.mark.slow
def test_reflection_can_be_switched_off(own_server: StartServer) -> None:
    server = own_server(reflection=False, metrics_port="null")
    with raw_channel(server) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        failure = failure_of(lambda: list(ask(iter([reflection_pb2.ServerReflectionRequest()]))))

    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    assert server.metrics_url.endswith(":None/metrics")  # and no metrics port was opened


async def test_every_metric_of_the_table_is_scraped_and_moves_with_traffic(own_server: StartServer) -> None:
    server = own_server(
        adapter_slots=1, max_running=2, kv_cache_bytes=2**19, max_context_tokens=1024
    )  # 32 blocks
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        requests: list[dict[str, Any]] = [
            {"prompt": PROMPT * 4, "adapter": adapter, **GREEDY, "max_tokens": 500}
            for adapter in ("", "", *ADAPTERS, *ADAPTERS)
        ]
        await answer_all(client, requests)
        async with await begin(client.stream(PROMPT, **{**GREEDY, "max_tokens": 900})):
            pass  # cancelled
        for refused in ({"adapter": "unknown"}, {"temperature": 9}):
            with pytest.raises(LoraplexApiError):
                await client.generate(PROMPT, **refused)
        await asyncio.to_thread(_await_cancelled, server)
    samples = server.samples()

    scraped = {sample.name for sample in samples}
    missing = {
        sample.name
        for family in Metrics().registry.collect()
        for sample in family.samples
        if sample.name not in scraped
    }
    assert not missing
    value = {name: server.metric(f"loraplex_{name}") for name in _MUST_MOVE}
    assert not [name for name, moved in value.items() if moved <= 0]
    assert value["adapters_registered"] == 3
    assert value["adapter_slots"] == 1
    assert value["kv_blocks"] == 32
    assert server.metric("loraplex_requests_total", adapter="base", finish="length") == 2
    assert server.metric("loraplex_requests_total", adapter="base", finish="cancelled") == 1
    assert server.metric("loraplex_completion_tokens_total", adapter="red") == 1000
    assert server.metric("loraplex_rejects_total", reason="ADAPTER_NOT_FOUND") == 1
    assert server.metric("loraplex_rejects_total", reason="INVALID_REQUEST") == 1
    for gauge in ("running_sequences", "waiting_sequences", "kv_blocks_used"):
        eventually(lambda name=gauge: server.metric(f"loraplex_{name}") == 0)  # type: ignore[misc]


_MUST_MOVE = (
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "request_duration_seconds_count",
    "queue_seconds_count",
    "step_seconds_count",
    "batch_sequences_count",
    "batch_adapters_count",
    "adapter_load_seconds_count",
    "rpc_duration_seconds_count",
    "requests_total",
    "prompt_tokens_total",
    "completion_tokens_total",
    "rejects_total",
    "adapter_loads_total",
    "adapter_evictions_total",
    "preemptions_total",
    "prefix_cache_hit_tokens_total",
    "engine_starts_total",
    "kv_blocks",
    "adapter_slots",
    "adapter_slots_used",
    "adapters_registered",
    "build_info",
)


def _await_cancelled(server: LiveServer) -> None:
    eventually(lambda: server.metric("loraplex_requests_total", finish="cancelled") == 1)


async def test_labels_are_those_of_registered_adapters_and_go_with_them(
    server: LiveServer, client: LoraplexClient, aclient: AsyncLoraplexClient, packages: Path
) -> None:
    """vLLM #13303: several adapters in one label. triton server #8181: no metrics of adapters."""

    def labels() -> set[str]:
        return {sample.labels["adapter"] for sample in server.samples() if "adapter" in sample.labels}

    client.adapters.create("passing", packages / "red")
    client.generate(PROMPT, adapter="passing", **GREEDY)
    assert "passing" in labels()
    stream = await begin(aclient.stream(PROMPT, adapter="passing", **{**GREEDY, "max_tokens": 300}))
    for name in ("made-up", "x" * 63):
        with pytest.raises(NotFoundError):
            client.generate(PROMPT, adapter=name)

    client.adapters.delete("passing")
    assert "passing" not in labels()
    async for _ in stream:  # a request that ends later must not bring the label back
        pass
    await aclient.generate(PROMPT, **GREEDY)

    assert labels() <= {"base", "other", *ADAPTERS}


def test_reasons_and_methods_are_the_only_other_labels_and_are_bounded(server: LiveServer) -> None:
    samples = [sample for sample in server.samples() if sample.name.startswith("loraplex_")]

    assert {label for sample in samples for label in sample.labels} <= {
        "adapter", "finish", "reason", "method", "code", "le",
        "version", "architecture", "quantization", "device", "base_fingerprint",
    }  # fmt: skip
    methods = {sample.labels["method"] for sample in samples if "method" in sample.labels}
    assert methods <= {method.descriptor.name for method in METHODS}
    assert {sample.labels["code"] for sample in samples if "code" in sample.labels} <= {
        code.name for code in grpc.StatusCode
    }

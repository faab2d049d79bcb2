"""OpsService: what the server is and how it fares; draining."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from loraplex.v1 import ops_pb2, ops_pb2_grpc
from loraplex_adapters.errors import FieldViolation, InvalidRequestError
from loraplex_server.config import ServerConfig
from loraplex_server.engine_client import EngineClient
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.serving import Serving

_MAX_GRACE_S = 3600.0


class OpsServicer(ops_pb2_grpc.OpsServiceServicer):
    """Draining is obeyed while the base model loads, too."""

    def __init__(
        self,
        serving: Serving,
        engine: EngineClient,
        config: ServerConfig,
        version: str,
        drain: Callable[[float], None],
    ) -> None:
        """`drain(grace_s)` begins the server's stop and returns at once."""
        self._serving = serving
        self._engine = engine
        self._config = config
        self._version = version
        self._drain = drain
        self._started_s = time.monotonic()

    async def GetServerInfo(
        self, request: ops_pb2.GetServerInfoRequest, context: Context
    ) -> ops_pb2.GetServerInfoResponse:
        parts = self._serving.parts()
        ready, config = parts.ready, self._config
        return ops_pb2.GetServerInfoResponse(
            version=self._version,
            base_model=ops_pb2.BaseModel(
                id=parts.base_id,
                architecture=ready.architecture,
                quantization=ready.quantization,
                device=ready.device,
                fingerprint=ready.base_fingerprint,
                weight_bytes=ready.weight_bytes,
                parameter_count=ready.parameter_count,
            ),
            limits=ops_pb2.Limits(
                max_context_tokens=ready.max_context_tokens,
                max_output_tokens=config.max_output_tokens,
                max_running=ready.max_running,
                max_waiting=config.max_waiting,
                adapter_slots=ready.adapter_slots,
                max_lora_rank=config.max_lora_rank,
                max_adapter_bytes=config.max_adapter_bytes,
            ),
            load=self._load(ready.num_blocks, parts.releases.directory.num_adapters),
            uptime_seconds=time.monotonic() - self._started_s,
        )

    async def Drain(self, request: ops_pb2.DrainRequest, context: Context) -> ops_pb2.DrainResponse:
        grace_s = request.grace_seconds if request.HasField("grace_seconds") else self._config.drain_grace_s
        if not 0 <= grace_s <= _MAX_GRACE_S:
            raise InvalidRequestError([FieldViolation("grace_seconds", f"must be in [0, {_MAX_GRACE_S:g}]")])
        in_flight = self._serving.parts().generation.num_in_flight if self._serving.has_begun else 0
        self._drain(grace_s)
        return ops_pb2.DrainResponse(in_flight=in_flight)

    def _load(self, num_blocks: int, num_adapters: int) -> ops_pb2.Load:
        stats = self._engine.stats
        return ops_pb2.Load(
            running=stats.num_running,
            waiting=stats.num_waiting,
            kv_blocks_used=stats.kv_blocks_used,
            kv_blocks_total=num_blocks,
            adapter_slots_used=stats.adapter_slots_used,
            adapters_registered=num_adapters,
            resident_bytes=_resident_bytes([None, self._engine.process_id]),
        )


def _resident_bytes(process_ids: list[int | None]) -> int:
    """Resident memory of this process (None) and of others that still live."""
    total = 0
    for process_id in process_ids:
        try:
            total += int(psutil.Process(process_id).memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return total

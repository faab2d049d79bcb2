"""The composition root: builds the server's parts, starts them, drains and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import Adapter
from loraplex_server.base.fetch import DEFAULT_BASE_ID
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.base.resolve import resolve_base
from loraplex_server.config import ServerConfig
from loraplex_server.data_dir import exclusive_use
from loraplex_server.engine.messages import EngineReady, EngineStats
from loraplex_server.engine_client import EngineClient, EngineState, OnProgress
from loraplex_server.generation import GenerationLimits, GenerationService
from loraplex_server.gpu_presence import check_device
from loraplex_server.listening import listening
from loraplex_server.metrics import Metrics
from loraplex_server.releases.assembly import build_releases, check_settings, open_storage
from loraplex_server.releases.service import Releases
from loraplex_server.rpc.adapters import AdapterServicer
from loraplex_server.rpc.health import HealthServicer
from loraplex_server.rpc.inference import InferenceServicer
from loraplex_server.rpc.interceptors import ErrorInterceptor
from loraplex_server.rpc.ops import OpsServicer
from loraplex_server.rpc.serving import Serving, ServingParts
from loraplex_server.rpc.training import TrainingServicer
from loraplex_server.tokenizer import BaseTokenizer
from loraplex_server.training.assembly import build_training
from loraplex_server.training.service import TrainingJobs

log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 8 * 2**20
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 * 2**10),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # two servers on one port would share its requests
]
_SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in (
        (inference_pb2.DESCRIPTOR, "InferenceService"),
        (adapter_pb2.DESCRIPTOR, "AdapterService"),
        (ops_pb2.DESCRIPTOR, "OpsService"),
        (training_pb2.DESCRIPTOR, "TrainingService"),
    )
)
_WITHDRAWAL_S = 0.2  # between NOT_SERVING and refusing, so that load balancers turn away first
_GOODBYE_S = 5.0  # at most, for the statuses of the last requests to reach their clients


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a running server listens."""

    grpc_port: int
    metrics_port: int | None


OnReady = Callable[[ServerAddress], None]


def run_server(
    config: ServerConfig, on_ready: OnReady | None = None, on_progress: OnProgress | None = None
) -> None:
    """Serve until SIGTERM, SIGINT or Drain.

    on_progress  called with (stage, done, total) while an engine starts, the first or a later one.

    Raises LoraplexError if the server cannot start.
    """
    asyncio.run(Server(config, on_progress).serve(on_ready))


class Server:
    """One server: gRPC front end, engine process, metrics port."""

    def __init__(self, config: ServerConfig, on_progress: OnProgress | None = None) -> None:
        self._config = config
        self._on_progress = on_progress
        self._version = importlib.metadata.version("loraplex")
        self._metrics = Metrics()
        self._serving = Serving()
        self._health = HealthServicer(("", *_SERVICES))
        self._stop_requested = asyncio.Event()
        self._grace_s = config.drain_grace_s
        self._grace: asyncio.Timeout | None = None  # while it runs
        self._is_draining = False
        self._engine: EngineClient | None = None
        self._releases: Releases | None = None
        self._training: TrainingJobs | None = None

    async def serve(self, on_ready: OnReady | None = None) -> None:
        """Start, tell `on_ready`, run until told to stop, drain, stop. Raises LoraplexError if it cannot start."""
        self._install_signal_handlers()
        with exclusive_use(self._config.data_dir):
            await self._serve(on_ready)

    async def _serve(self, on_ready: OnReady | None) -> None:
        config = self._config
        check_device(config.device)
        check_settings(config)
        metrics_port = self._serve_metrics()
        base_path = await asyncio.to_thread(resolve_base, config.base)
        engine = self._engine = EngineClient(
            config.engine_config(base_path),
            self._engine_changed,
            self._engine_stepped,
            self._on_progress,
        )
        server, port = self._build_grpc_server(engine)
        await server.start()
        log.info("listening", extra={"host": config.host, "port": port, "metrics_port": metrics_port})
        storage = None
        try:
            spec = await asyncio.to_thread(base_spec, base_path)
            storage = await asyncio.to_thread(open_storage, config)
            tokenizer = await asyncio.to_thread(BaseTokenizer, base_path)
            ready = await self._until_stopped(engine.start())
            if ready is not None:
                releases = self._releases = await asyncio.to_thread(
                    build_releases, config, storage, spec, base_path, engine, ready, tokenizer, self._metrics
                )
                await releases.start()
                training = self._training = await asyncio.to_thread(
                    build_training, config, base_path, ready, releases, engine, self._metrics
                )
                if training is not None:
                    await training.start()
                generation = self._begin_serving(engine, tokenizer, releases, ready)
                self._health.set_serving(engine.state is EngineState.READY)
                log.info(
                    "serving",
                    extra={
                        "load_seconds": ready.load_seconds,
                        "quantization": ready.quantization,
                        "quantization_reason": ready.quantization_reason,
                    },
                )
                if on_ready is not None:
                    on_ready(ServerAddress(port, metrics_port))
                await self._stop_requested.wait()
                await self._drain(generation)
        finally:
            if self._training is not None:  # it registers adapters, and its streams end with it
                await self._training.close()
            if self._releases is not None:
                await self._releases.end_watches()
            await engine.stop()  # first, so that what the grace left running is told why it ends
            await server.stop(_GOODBYE_S)
            if self._releases is not None:
                await self._releases.close()
            elif storage is not None:
                await asyncio.to_thread(storage[0].close)
        log.info("stopped")

    def request_stop(self, grace_s: float | None = None) -> None:
        """Begin draining; running requests get `grace_s` seconds from now, or the configured number."""
        if grace_s is not None:
            self._grace_s = grace_s
            if self._grace is not None:
                self._grace.reschedule(asyncio.get_running_loop().time() + grace_s)
        self._stop_requested.set()

    def _begin_serving(
        self, engine: EngineClient, tokenizer: BaseTokenizer, releases: Releases, ready: EngineReady
    ) -> GenerationService:
        """Join the parts and open the services for requests."""
        directory = releases.directory
        directory.subscribe(self._adapter_changed)
        self._metrics.watch_adapters(
            lambda: directory.num_adapters,
            lambda label: directory.is_known(AdapterName.parse(label)),
            releases.place_of,
            lambda: releases.packages.num_leases,
        )
        generation = GenerationService(
            engine, tokenizer, directory, self._limits(ready), releases.shadows.begin
        )
        base_id = self._config.base or DEFAULT_BASE_ID
        self._serving.begin(ServingParts(generation, tokenizer, releases, ready, base_id, self._training))
        return generation

    def _install_signal_handlers(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may; a server embedded in another one is stopped through request_stop.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, self.request_stop)

    async def _until_stopped(self, start: Coroutine[None, None, EngineReady]) -> EngineReady | None:
        """The engine's readiness; None if a stop is asked for meanwhile."""
        starting = asyncio.ensure_future(start)
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        return None

    def _serve_metrics(self) -> int | None:
        """The port; None where metrics are switched off. Raises PortInUseError, ConfigError."""
        config = self._config
        if config.metrics_port is None:
            return None
        return self._metrics.serve(config.metrics_port, config.host)

    def _build_grpc_server(self, engine: EngineClient) -> tuple[grpc.aio.Server, int]:
        config = self._config
        server = grpc.aio.server(interceptors=[ErrorInterceptor(self._metrics)], options=_CHANNEL_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(
                self._serving, self._metrics, config.max_output_tokens, config.write_stall_timeout_s
            ),
            server,
        )
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(
            AdapterServicer(self._serving, config.upload_idle_timeout_s, config.write_stall_timeout_s),
            server,
        )
        ops_pb2_grpc.add_OpsServiceServicer_to_server(
            OpsServicer(self._serving, engine, config, self._version, self.request_stop), server
        )
        training_pb2_grpc.add_TrainingServiceServicer_to_server(
            TrainingServicer(self._serving, config.write_stall_timeout_s), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            names = (*_SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        with listening(config.host, config.port, "port", "0 takes any free one"):
            port = server.add_insecure_port(f"{config.host}:{config.port}")
        return server, port

    def _limits(self, ready: EngineReady) -> GenerationLimits:
        config = self._config
        return GenerationLimits(
            max_waiting=config.max_waiting,
            max_context_tokens=ready.max_context_tokens,
            max_output_tokens=config.max_output_tokens,
            max_running=ready.max_running,
            default_deadline_s=config.default_deadline_s,
            max_deadline_s=config.max_deadline_s,
        )

    def _engine_changed(self, state: EngineState) -> None:
        """Health follows the engine, except that a draining server stays NOT_SERVING."""
        if state is not EngineState.READY:
            self._metrics.engine_gone()
        elif self._engine is not None and self._engine.ready is not None:
            self._metrics.engine_ready(self._engine.ready, self._version)
        if self._releases is not None:
            if state is EngineState.READY:
                self._releases.engine_ready()
            else:
                self._releases.engine_gone()
        if self._is_draining or not self._serving.has_begun:
            return
        self._health.set_serving(state is EngineState.READY)

    def _engine_stepped(self, stats: EngineStats) -> None:
        self._metrics.engine_step(stats)
        if self._releases is not None:
            self._releases.residency.engine_step(stats)

    def _adapter_changed(self, name: AdapterName, before: Adapter | None, after: Adapter | None) -> None:
        """A deleted adapter's series go away."""
        if before is not None and after is None:
            self._metrics.adapter_deleted(str(name))

    async def _drain(self, generation: GenerationService) -> None:
        """Turn new requests away, let running ones finish within the grace."""
        self._is_draining = True
        log.info("draining", extra={"in_flight": generation.num_in_flight, "grace_seconds": self._grace_s})
        self._health.set_serving(False)
        await asyncio.sleep(_WITHDRAWAL_S)
        generation.start_draining()
        try:
            async with asyncio.timeout(self._grace_s) as self._grace:
                await generation.wait_until_idle()
        except TimeoutError:
            log.warning(
                "requests cut off by the end of the grace", extra={"in_flight": generation.num_in_flight}
            )
        finally:
            self._grace = None

"""Every Prometheus metric of the server, in one place and one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server

from loraplex_server.adapter_gauges import AdapterGauge
from loraplex_server.engine.messages import EngineReady, EngineStats
from loraplex_server.histogram import LoopHistogram
from loraplex_server.listening import listening

MAX_ADAPTER_LABELS = 200
"""Adapters that get a label of their own; the rest share "other", so that the series stay bounded."""

_OTHER = "other"
_BASE = "base"
_LATENCY_S = (
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    0.75,
    1,
    2,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_TOKEN_LATENCY_S = (
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
    2.5,
)
_LOAD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where what an adapter's name serves is, and how long its last way there took."""

    tier: float  # 0 disk, 1 host memory, 2 slot
    read_s: float
    copy_s: float


class Metrics:
    """Owned by the front end's event loop."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._labels: set[str] = set()
        self._is_registered: Callable[[str], bool] = lambda adapter: False
        self._place_of: Callable[[str], AdapterPlace | None] = lambda adapter: None
        self._time_to_first_token = _histogram(
            registry, "time_to_first_token_seconds", "Admission until the first token.", _LATENCY_S
        )
        self._inter_token = _histogram(
            registry, "inter_token_latency_seconds", "Between tokens of one stream.", _TOKEN_LATENCY_S
        )
        self._end_to_end = _histogram(
            registry, "request_duration_seconds", "Admission until the last token.", _LATENCY_S
        )
        self._queue = _histogram(registry, "queue_seconds", "Admission until the first step.", _LATENCY_S)
        self._step = _histogram(registry, "step_seconds", "One engine step.", _TOKEN_LATENCY_S)
        self._batch_sequences = _histogram(registry, "batch_sequences", "Sequences in a step.", _COUNTS)
        self._batch_adapters = _histogram(
            registry, "batch_adapters", "Distinct adapters in a step, the base not counted.", _COUNTS
        )
        self._adapter_load = _histogram(
            registry, "adapter_load_seconds", "Reading an adapter into host memory.", _LOAD_S
        )
        self._rpc = Histogram(
            "loraplex_rpc_duration_seconds",
            "RPCs by method and status.",
            ["method", "code"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._requests = Counter(
            "loraplex_requests",
            "Requests ended, by adapter and finish.",
            ["adapter", "finish"],
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "loraplex_prompt_tokens", "Prompt tokens of ended requests.", ["adapter"], registry=registry
        )
        self._completion_tokens = Counter(
            "loraplex_completion_tokens", "Tokens generated.", ["adapter"], registry=registry
        )
        self._rejects = Counter(
            "loraplex_rejects", "Requests refused or failed.", ["reason"], registry=registry
        )
        self._adapter_loads = Counter(
            "loraplex_adapter_loads", "Adapters moved into a slot.", registry=registry
        )
        self._adapter_evictions = Counter(
            "loraplex_adapter_evictions", "Adapters moved out of a slot.", registry=registry
        )
        self._adapter_copy = _histogram(
            registry, "adapter_copy_seconds", "Copying an adapter into its slot.", _LOAD_S
        )
        self._shadow_requests = Counter(
            "loraplex_shadow_requests",
            "Answers of shadow versions, by how they compared.",
            ["adapter", "outcome"],
            registry=registry,
        )
        self._preemptions = Counter("loraplex_preemptions", "Sequences pushed back.", registry=registry)
        self._prefix_hits = Counter(
            "loraplex_prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.", registry=registry
        )
        self._engine_starts = Counter(
            "loraplex_engine_starts", "Engine processes that became ready.", registry=registry
        )
        self._device_idle = Counter(
            "loraplex_device_idle_seconds", "A GPU waiting between steps in flight.", registry=registry
        )
        self._running = _gauge(registry, "running_sequences", "Sequences in the batch.")
        self._waiting = _gauge(registry, "waiting_sequences", "Sequences waiting in the engine.")
        self._kv_blocks = _gauge(registry, "kv_blocks", "Key-value blocks.")
        self._kv_blocks_used = _gauge(registry, "kv_blocks_used", "Key-value blocks held by sequences.")
        self._kv_blocks_cached = _gauge(
            registry, "kv_blocks_cached", "Key-value blocks that nobody holds, kept to be found again."
        )
        self._slots = _gauge(registry, "adapter_slots", "Adapter slots.")
        self._slots_used = _gauge(registry, "adapter_slots_used", "Adapter slots that hold an adapter.")
        self._slots_pinned = _gauge(registry, "adapter_slots_pinned", "Adapter slots of pinned adapters.")
        self._adapter_leases = _gauge(
            registry, "adapter_leases", "Sequences that hold an adapter in its slot."
        )
        self._package_leases = _gauge(
            registry, "package_leases", "Requests and registrations that hold a package."
        )
        self._adapters_loading = _gauge(registry, "adapters_loading", "Adapters on their way into a slot.")
        self._host_cache = _gauge(registry, "host_cache_bytes", "Host memory for adapters.")
        self._host_cache_used = _gauge(registry, "host_cache_used_bytes", "Host memory that holds adapters.")
        self._arena = _gauge(registry, "adapter_arena_bytes", "Memory of the adapter slots.")
        self._arena_used = _gauge(registry, "adapter_arena_used_bytes", "Memory that adapters in slots take.")
        self._compacted = Counter(
            "loraplex_adapter_arena_moved_bytes",
            "Moved within the arena to join its free parts.",
            registry=registry,
        )
        self._adapters = _gauge(registry, "adapters_registered", "Registered adapters.")
        AdapterGauge(
            registry,
            "loraplex_adapter_tier",
            "Where its stable version is: 0 disk, 1 host memory, 2 slot.",
            lambda: {adapter: place.tier for adapter, place in self._places().items()},
        )
        AdapterGauge(
            registry,
            "loraplex_adapter_last_read_seconds",
            "Of its last read into host memory; 0: none yet.",
            lambda: {adapter: place.read_s for adapter, place in self._places().items()},
        )
        AdapterGauge(
            registry,
            "loraplex_adapter_last_copy_seconds",
            "Of its last copy into a slot; 0: none yet.",
            lambda: {adapter: place.copy_s for adapter, place in self._places().items()},
        )
        self._training_waiting = _gauge(registry, "training_jobs_waiting", "Training jobs that wait.")
        self._training_running = _gauge(registry, "training_jobs_running", "Training jobs that run.")
        self._training_jobs = Counter(
            "loraplex_training_jobs", "Training jobs ended, by state.", ["state"], registry=registry
        )
        self._training_steps = Counter(
            "loraplex_training_steps", "Optimizer steps of training jobs.", registry=registry
        )
        self._training_pauses = Counter(
            "loraplex_training_pause_seconds",
            "Time that training jobs gave way to requests.",
            registry=registry,
        )
        self._build = Info("loraplex_build", "Version and base model.", registry=registry)

    def serve(self, port: int, host: str) -> int:
        """Expose the metrics over HTTP from a thread; returns the port. Raises PortInUseError, ConfigError."""
        with listening(host, port, "metrics_port", "0 takes any free one, null switches metrics off"):
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        bound: int = server.server_port
        return bound

    def engine_ready(self, ready: EngineReady, version: str) -> None:
        self._engine_starts.inc()
        self._kv_blocks.set(ready.num_blocks)
        self._slots.set(ready.adapter_slots)
        self._arena.set(ready.adapter_arena_bytes)
        self._host_cache.set(ready.host_cache_bytes)
        self._build.info(
            {
                "version": version,
                "architecture": ready.architecture,
                "quantization": ready.quantization,
                "device": ready.device,
                "base_fingerprint": ready.base_fingerprint,
            }
        )

    def engine_gone(self) -> None:
        """It holds nothing any more."""
        self._set_engine_gauges(EngineStats())

    def engine_step(self, stats: EngineStats) -> None:
        """Record one step; called once per message of the engine."""
        self._set_engine_gauges(stats)
        if stats.batch_sequences:
            self._step.observe(stats.step_seconds)
            self._batch_sequences.observe(stats.batch_sequences)
            self._batch_adapters.observe(stats.batch_adapters)
        if stats.device_idle_seconds:
            self._device_idle.inc(stats.device_idle_seconds)
        if stats.preemptions:
            self._preemptions.inc(stats.preemptions)
        if stats.prefix_hit_tokens:
            self._prefix_hits.inc(stats.prefix_hit_tokens)
        for seconds in stats.adapter_load_seconds:
            self._adapter_load.observe(seconds)
        for seconds in stats.adapter_copy_seconds:
            self._adapter_loads.inc()
            self._adapter_copy.observe(seconds)
        if stats.compacted_bytes:
            self._compacted.inc(stats.compacted_bytes)
        if stats.adapter_evictions:
            self._adapter_evictions.inc(stats.adapter_evictions)

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        self._time_to_first_token.observe(seconds)
        self._queue.observe(queue_seconds)

    def inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def request_ended(
        self, adapter: str, finish: str, seconds: float, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """`finish` is a finish reason, or "error" or "cancelled"."""
        label = self._adapter_label(adapter)
        self._requests.labels(label, finish).inc()
        self._prompt_tokens.labels(label).inc(prompt_tokens)
        self._completion_tokens.labels(label).inc(completion_tokens)
        self._end_to_end.observe(seconds)

    def shadow_ended(self, adapter: str, outcome: str) -> None:
        """`outcome` is "equal", "different" or "dropped"."""
        self._shadow_requests.labels(self._adapter_label(adapter), outcome).inc()

    def training_queue(self, num_waiting: int, num_running: int) -> None:
        """How many training jobs of this server wait and run."""
        self._training_waiting.set(num_waiting)
        self._training_running.set(num_running)

    def training_step(self, paused_s: float, *, is_optimizer_step: bool) -> None:
        """A training job went on, after it gave way for so many seconds."""
        if is_optimizer_step:
            self._training_steps.inc()
        if paused_s:
            self._training_pauses.inc(paused_s)

    def training_ended(self, state: str) -> None:
        """`state` is that of a job that does not run any more."""
        self._training_jobs.labels(state).inc()

    def rejected(self, reason: str) -> None:
        self._rejects.labels(reason).inc()

    def rpc_ended(self, method: str, code: str, seconds: float) -> None:
        self._rpc.labels(method, code).observe(seconds)

    def watch_adapters(
        self,
        count: Callable[[], int],
        is_registered: Callable[[str], bool],
        place_of: Callable[[str], AdapterPlace | None] = lambda adapter: None,
        num_leases: Callable[[], int] = lambda: 0,
    ) -> None:
        """`is_registered` is called before an adapter gets a label of its own, the others from the scrape's thread."""
        self._adapters.set_function(count)
        self._package_leases.set_function(num_leases)
        self._is_registered = is_registered
        self._place_of = place_of

    def adapter_deleted(self, adapter: str) -> None:
        """Drop the adapter's series."""
        if adapter in self._labels:
            self._labels.discard(adapter)
            self._prompt_tokens.remove(adapter)
            self._completion_tokens.remove(adapter)
            self._requests.remove_by_labels({"adapter": adapter})
            self._shadow_requests.remove_by_labels({"adapter": adapter})

    def _set_engine_gauges(self, stats: EngineStats) -> None:
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._kv_blocks_used.set(stats.kv_blocks_used)
        self._kv_blocks_cached.set(stats.kv_blocks_cached)
        self._slots_used.set(stats.adapter_slots_used)
        self._slots_pinned.set(stats.adapter_slots_pinned)
        self._adapter_leases.set(stats.adapter_leases)
        self._adapters_loading.set(stats.adapters_loading)
        self._host_cache_used.set(stats.host_cache_bytes_used)
        self._arena_used.set(stats.arena_bytes_used)

    def _places(self) -> dict[str, AdapterPlace]:
        """Of the adapters that have a label."""
        places = {adapter: self._place_of(adapter) for adapter in list(self._labels)}
        return {adapter: place for adapter, place in places.items() if place is not None}

    def _adapter_label(self, adapter: str) -> str:
        """A caller cannot invent labels, nor can a request that outlives its adapter bring the label back."""
        if not adapter:
            return _BASE
        if adapter not in self._labels:
            if len(self._labels) >= MAX_ADAPTER_LABELS or not self._is_registered(adapter):
                return _OTHER
            self._labels.add(adapter)
        return adapter


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> LoopHistogram:
    return LoopHistogram(registry, f"loraplex_{name}", text, buckets)


def _gauge(registry: CollectorRegistry, name: str, text: str) -> Gauge:
    return Gauge(f"loraplex_{name}", text, registry=registry)

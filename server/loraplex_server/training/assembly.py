"""Builds a server's training jobs from its settings."""

from __future__ import annotations

from pathlib import Path

from loraplex_server.base.fetch import DEFAULT_BASE_ID
from loraplex_server.config import ServerConfig
from loraplex_server.engine.messages import EngineReady
from loraplex_server.engine_client import EngineClient
from loraplex_server.metrics import Metrics
from loraplex_server.releases.service import Releases
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.job_store import JobStore
from loraplex_server.training.neighbours import Neighbours
from loraplex_server.training.service import TrainingJobs
from loraplex_server.training.settings import ServedBase, training_limits


def build_training(
    config: ServerConfig,
    base_path: Path,
    ready: EngineReady,
    releases: Releases,
    engine: EngineClient,
    metrics: Metrics,
) -> TrainingJobs | None:
    """None where training is switched off. Nothing begins yet. Blocks. Raises StorageError."""
    if not config.training:
        return None
    base = ServedBase(
        id=config.base or DEFAULT_BASE_ID,
        folder=base_path,
        fingerprint=ready.base_fingerprint,
        precision=ready.quantization,
        device="cuda" if ready.device.startswith("cuda") else "cpu",
        max_rank=config.max_lora_rank,
    )
    return TrainingJobs(
        JobStore(config.resolved_registry_url, config.training_max_jobs_per_tenant),
        JobFolders(config.training_path),
        base,
        training_limits(config),
        releases.registrar,
        Neighbours(releases.registry, releases.packages, ready.base_fingerprint).link,
        lambda: engine.stats.num_waiting,
        metrics,
    )

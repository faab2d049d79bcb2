"""What training jobs may take of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from loraplex_server.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLimits:
    """From ServerConfig, with what this machine decides."""

    roots: tuple[Path, ...]
    max_upload_bytes: int
    time_s: float  # of one attempt
    memory_bytes: int  # resident, of one job's processes
    num_threads: int
    max_waiting: int
    max_pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBase:
    """What jobs train over: the base that this server serves."""

    id: str
    folder: Path
    fingerprint: str
    precision: str
    device: str  # cpu or cuda
    max_rank: int


def training_limits(config: ServerConfig) -> TrainingLimits:
    """Reads the size of the machine."""
    cores = psutil.cpu_count() or 1
    memory = config.training_memory_bytes or psutil.virtual_memory().total // 2
    return TrainingLimits(
        roots=config.training_roots,
        max_upload_bytes=config.training_max_upload_bytes,
        time_s=config.training_timeout_s,
        memory_bytes=memory,
        num_threads=config.training_threads or max(1, cores // 2),
        max_waiting=config.training_max_waiting,
        max_pause_s=config.training_max_pause_s,
    )

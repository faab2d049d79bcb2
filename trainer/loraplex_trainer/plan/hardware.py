"""What this machine, or one that is only described, offers a training."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraplex_server.engine.cores import usable_cores
from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.sections import ResourcesSection

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device and the machine around it. On a CPU the device's memory is the machine's."""

    device: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    free_bytes: int  # what a training may take
    has_bf16: bool
    num_cores: int
    ram_bytes: int


def gib(size_bytes: int) -> str:
    """For people."""
    return f"{size_bytes / GIB:.1f} GiB"


def described_gpu(size_gb: float) -> Hardware:
    """An empty card of that size, of a kind that computes in bf16. Cards are sold by GiB."""
    size = int(size_gb * GIB)
    return Hardware("cuda", f"a {size_gb:g} GB card", size, size, True, os.cpu_count() or 1, _ram()[0])


def probe(resources: ResourcesSection) -> Hardware:
    """This machine as far as the recipe lets the training have it.

    `resources.vram_gb` bounds a card that is here, and describes one that is not. Raises RecipeError where
    `device: cuda` finds no card and none is described.
    """
    import torch

    limit = None if resources.vram_gb == "auto" else resources.vram_gb
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return _cpu()
    if torch.cuda.is_available():
        return _cuda(limit)
    if limit is None:
        raise RecipeError(
            "resources.device: there is no CUDA device here; write auto or cpu, "
            "or give resources.vram_gb to plan for a card elsewhere"
        )
    return described_gpu(limit)


def _cuda(limit_gb: float | None) -> Hardware:
    import torch

    free, total = torch.cuda.mem_get_info()
    if limit_gb is not None:
        free = min(free, int(limit_gb * GIB))
    return Hardware(
        device="cuda",
        name=torch.cuda.get_device_name(),
        total_bytes=total,
        free_bytes=free,
        has_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        num_cores=usable_cores(),
        ram_bytes=_ram()[0],
    )


def _cpu() -> Hardware:
    total, free = _ram()
    name = platform.processor() or platform.machine()
    return Hardware("cpu", name, total, free, False, usable_cores(), total)


def _ram() -> tuple[int, int]:
    """(total, available) bytes of the machine or of the container, whichever is less."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    if limit is None or limit >= memory.total:
        return memory.total, memory.available
    used = _cgroup_number("memory.current") or 0
    return limit, min(memory.available, max(0, limit - used))


def _cgroup_number(file: str) -> int | None:
    """None outside a container, or where it has no limit."""
    try:
        content = (_CGROUP / file).read_text().strip()
    except OSError:
        return None
    return int(content) if content.isdigit() else None

"""The backend of an engine: a CPU's or a GPU's."""

from __future__ import annotations

import torch

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.engine.backend import Backend, Progress
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.cpu_backend import load_cpu_backend
from loraplex_server.errors import BaseModelError
from loraplex_server.model.numerics import resolve_numerics


def build_backend(config: EngineConfig, spec: BaseSpec, on_progress: Progress) -> Backend:
    """Load the base onto the device that the config asks for. Raises BaseModelError."""
    numerics = resolve_numerics(config.quantization, config.device)
    if numerics.device.type == "cuda":
        if not torch.cuda.is_available():
            raise BaseModelError("device=cuda, but PyTorch finds no GPU here; take device=cpu or auto")
        from loraplex_server.engine.gpu_backend import load_gpu_backend

        return load_gpu_backend(config, numerics, spec, on_progress)
    return load_cpu_backend(config, numerics, spec, on_progress)

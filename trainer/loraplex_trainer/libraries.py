"""Keeps the training libraries off the network and off the terminal."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from logging import ERROR, getLogger

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_libraries() -> None:
    """To be called before datasets, PEFT or TRL are first imported: they read these settings once."""
    os.environ.update(_SETTINGS)
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Their notes to their own developers, and to those who would download kernels.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def require_libraries(*names: str) -> None:
    """Raises ModuleNotFoundError now for a library that would be missed at the end of a long run."""
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

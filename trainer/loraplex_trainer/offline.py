"""Keeps the training libraries off the network."""

from __future__ import annotations

import os

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def work_offline() -> None:
    """To be called before transformers, datasets, PEFT or TRL are first imported: they read these once."""
    os.environ.update(_SETTINGS)

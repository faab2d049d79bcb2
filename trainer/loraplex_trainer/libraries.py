"""Keeps the training libraries off the network and off the terminal."""

from __future__ import annotations

import os

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

"""What a figure was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

_SOURCES = Path(__file__).parents[1]
_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("loraplex", "triton", "transformers", "peft", "bitsandbytes")


def versions() -> dict[str, str | None]:
    """Python, torch, the GPU's driver and the sources; of packages those that are installed.

    driver  None without a GPU of NVIDIA, or where /proc does not tell
    commit  LORAPLEX_COMMIT, where sources came without their repository; else see `commit`
    """
    found: dict[str, str | None] = {
        "commit": os.environ.get("LORAPLEX_COMMIT") or commit(_SOURCES),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "driver": _driver(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """Of a folder in git, with "+" behind it where a tracked file is not as committed; None where git says nothing."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"],
            cwd=folder,
            env={
                **os.environ,
                "GIT_CEILING_DIRECTORIES": str(folder.parent),
            },  # a repository around it is another's
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _driver() -> str | None:
    try:
        text = _DRIVER.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None

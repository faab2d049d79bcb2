"""Compiled kernels on disk, which make a second start fast. A help, never a condition: what fails here is logged.

A file is the SHA-256 of a kernel's machine code, then the code. What a crash left half written is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from loraplex_server.cache_dir import default_cache_dir

log = logging.getLogger(__name__)
_DIGEST_BYTES = 32


def kernel_cache() -> Path:
    """`kernels` in Loraplex's cache folder; those of a CPU have one folder per version in it."""
    return default_cache_dir() / "kernels"


def read_kernel(path: Path) -> bytes | None:
    """What `write_kernel` left there; None if that is nothing, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(code).digest() == digest:
        return code
    log.warning("a damaged file in the kernel cache is compiled anew path=%s", path)
    return None


def write_kernel(path: Path, code: bytes) -> None:
    """Appear under the final name complete, whoever else writes it at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, hashlib.sha256(code).digest() + code)
    except OSError as error:
        log.warning("a kernel is compiled again at the next start, it cannot be kept: %s", error)


def _replace(path: Path, content: bytes) -> None:
    file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115 - it outlives its closing
    try:
        with file:
            file.write(content)
        os.replace(file.name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        raise

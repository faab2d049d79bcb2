"""How each subject is built. Imports happen in its own process, so that the parent stays small and loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.plan import ENGINE_BF16, ENGINE_INT8, PEFT_BF16, PEFT_FP32, SERVED, TRANSFORMERS
from benchmarks.subject import Subject
from loraplex_server.engine.config import Quantization

Packages = Mapping[str, Path]
"""Adapter name -> PEFT folder."""


def builders(base: Path, packages: Packages, server_target: str) -> dict[str, Callable[[], Subject]]:
    """Subject -> what builds it, to be called in its process. `server_target`: host:port of a ready server."""
    return {
        SERVED: partial(_client, server_target, packages),
        ENGINE_INT8: partial(_engine, base, "int8", packages),
        ENGINE_BF16: partial(_engine, base, "bf16", packages),
        TRANSFORMERS: partial(_transformers, base, "bfloat16", {}),
        PEFT_BF16: partial(_transformers, base, "bfloat16", packages),
        PEFT_FP32: partial(_transformers, base, "float32", packages),
    }


def _client(server_target: str, packages: Packages) -> Subject:
    from benchmarks.served import ClientSubject

    return ClientSubject(server_target, packages)


def _engine(base: Path, quantization: Quantization, packages: Packages) -> Subject:
    from benchmarks.engine_subject import EngineSubject

    return EngineSubject(base, quantization, packages)


def _transformers(base: Path, dtype: str, packages: Packages) -> Subject:
    from benchmarks.peers import TransformersSubject

    return TransformersSubject(base, dtype, packages)

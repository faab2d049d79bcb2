"""What goes to a process that checks packages, and what comes back: one line of JSON each way.

JSON, because the answer comes from a process that read a stranger's files: reading it can run no code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.manifest import Manifest
from loraplex_adapters.package import DEFAULT_LIMITS, PackageLimits
from loraplex_server.admission.signature_trust import SignaturePolicy, SignatureTrust


@dataclass(frozen=True, slots=True)
class AdmissionBudget:
    """What the check of one package may take. Passing any is an AdapterInvalidError."""

    seconds: float = 60.0  # wall time of one check
    memory_bytes: int = 2**30  # above what the process has when it starts
    limits: PackageLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError("AdmissionBudget.seconds must be above 0")
        if self.memory_bytes < 1:
            raise ValueError("AdmissionBudget.memory_bytes must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionJob:
    """One package to prove, and what to prove it against."""

    folder: Path
    spec: BaseSpec
    max_rank: int
    expected_digest: str = ""  # empty: any
    template_hash: str = ""  # SHA-256 of the served chat template; empty: the base has none
    tokenizer_hash: str = ""  # SHA-256 of the served tokenizer.json
    max_elements: int | None = None  # weights of the largest adapter that can be resident; None: unknown
    must_have_effect: bool = False  # refuse one whose weights can change no answer
    signature_policy: SignaturePolicy = "off"
    trust: SignatureTrust = field(default_factory=SignatureTrust)
    layout: str = ""  # of the image to write; empty: none
    images_root: Path | None = None
    store_root: Path | None = None  # of the package store to keep it in; None: nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedPackage:
    """A package that was proved sound, and what the registry keeps of it."""

    digest: str
    size_bytes: int  # of all tensors, as stored
    num_elements: int  # of the matrices of all modules
    rank: int  # largest of any module
    target_modules: tuple[str, ...]  # sorted
    served_module_count: int  # (layer, module) pairs
    manifest: Manifest | None  # None: the package has none
    signer: str = ""  # empty: not signed, not rightly signed, or not asked
    warning: str = ""  # why the policy "warn" would have refused it as "require"; empty: nothing to say


class Refusal(msgspec.Struct, tag=True):
    """The package was refused, or the disk failed."""

    error: str  # name of the error's class
    message: str
    field: str = ""  # of an AdapterInvalidError that has one
    is_worker_spent: bool = False  # the process is in no state to check another package


class Admission(msgspec.Struct, tag=True):
    """The package was admitted."""

    package: AdmittedPackage


Answer = Admission | Refusal


def encode(message: object) -> bytes:
    """One line."""
    return msgspec.json.encode(message, enc_hook=str) + b"\n"  # only paths are unknown to msgspec


def decode_job(line: bytes) -> AdmissionJob:
    return msgspec.json.decode(line, type=AdmissionJob, dec_hook=_from_text)


def decode_answer(line: bytes) -> Answer:
    """Raises msgspec.MsgspecError for anything that is no answer."""
    answer: Answer = msgspec.json.decode(line, type=Answer)
    return answer


def _from_text(kind: type[Any], value: Any) -> Any:
    return kind(value)

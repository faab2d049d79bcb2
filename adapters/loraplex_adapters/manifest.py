"""`manifest.json` of a package that the trainer wrote: what its files are, and which base it was made for."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError
from loraplex_adapters.package import WEIGHTS_FILE, file_sha256, open_package_file
from loraplex_adapters.peft_config import CONFIG_FILE
from loraplex_adapters.strict_json import parse_object

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 1024
MAX_COMPANION_BYTES = 64 * 1024 * 1024
_MAX_COMPANIONS = 32
_SIGNATURE_FILE = "model.sig"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMPANION = re.compile(r"[A-Za-z0-9][\w-]{0,63}\.(json|jsonl|md|yaml|html)")
_MAX_TEXT = 256  # characters of a name that is passed on


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says that the server looks at. Keys beyond these are the trainer's own affair."""

    name: str  # empty where the manifest has none
    base_id: str  # empty where the manifest has none
    base_fingerprint: str
    template_sha256: str | None  # None: not said. Empty: the base had no chat template
    tokenizer_sha256: str | None  # None: not said
    files: dict[str, str]  # name of one of the two package files -> SHA-256, hex
    companions: dict[str, str] = field(
        default_factory=dict
    )  # reports beside them that it lists -> SHA-256, hex


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a package folder; None where there is none. Raises AdapterInvalidError."""
    if not os.path.lexists(folder / MANIFEST_FILE):
        return None
    with open_package_file(folder, MANIFEST_FILE) as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise AdapterInvalidError(f"{MANIFEST_FILE} has more than {MAX_MANIFEST_BYTES} bytes")
    content = parse_object(raw, MANIFEST_FILE)
    base = _object(content, "base")
    files = _object(content, "files")
    fingerprint = _hash(base, "fingerprint", "base.fingerprint")
    if fingerprint is None:
        raise AdapterInvalidError(f"{MANIFEST_FILE} has no base.fingerprint; {_HOW_TO_GO_ON}")
    _check_system(content)
    return Manifest(
        name=_text(content, "name"),
        base_id=_text(base, "id"),
        base_fingerprint=fingerprint,
        template_sha256=_hash(base, "template_sha256", "base.template_sha256", may_be_empty=True),
        tokenizer_sha256=_hash(base, "tokenizer_sha256", "base.tokenizer_sha256"),
        files={name: _file_hash(files, name) for name in (CONFIG_FILE, WEIGHTS_FILE)},
        companions=_companions(files),
    )


def check_files(manifest: Manifest, folder: Path) -> None:
    """Raises AdapterInvalidError unless the package's files are those that the manifest was written with.

    Companions may be missing, since only what is served travels to a server; one that is there must be right.
    """
    here = {name: digest for name, digest in manifest.companions.items() if os.path.lexists(folder / name)}
    for name in here:
        with open_package_file(folder, name) as file:
            if os.fstat(file.fileno()).st_size > MAX_COMPANION_BYTES:
                raise AdapterInvalidError(f"{name} has more than {MAX_COMPANION_BYTES} bytes")
    for name, expected in (manifest.files | here).items():
        if file_sha256(folder, name) != expected:
            raise AdapterInvalidError(
                f"{name} is not the file that {MANIFEST_FILE} describes; copy the package anew"
            )


def unlisted_files(manifest: Manifest, folder: Path) -> list[str]:
    """Names in the folder that are neither listed nor the manifest or its signature, sorted.

    The server never opens such files; a package that the trainer wrote has none.
    """
    known = {MANIFEST_FILE, _SIGNATURE_FILE, *manifest.files, *manifest.companions}
    return sorted(set(os.listdir(folder)) - known)


def check_base(manifest: Manifest, spec: BaseSpec, template_hash: str, tokenizer_hash: str) -> None:
    """Raises AdapterIncompatibleError unless the manifest was made for this base, its chat template and its
    tokenizer.

    `template_hash` is empty where the base has no chat template.
    """
    said_and_resident = (
        ("base model's weights", manifest.base_fingerprint, spec.fingerprint),
        ("chat template", manifest.template_sha256, template_hash),
        ("tokenizer", manifest.tokenizer_sha256, tokenizer_hash),
    )
    differing = [f"the {what}" for what, said, resident in said_and_resident if said not in (None, resident)]
    if differing:
        raise AdapterIncompatibleError(
            f"the adapter was trained on another base: {' and '.join(differing)} of its {MANIFEST_FILE} "
            "differ from what is served; train it on this base"
        )


_HOW_TO_GO_ON = "only the trainer's manifest may lie beside an adapter: remove the file or write it anew"


def _object(content: dict[str, Any], field: str) -> dict[str, Any]:
    value = content.get(field)
    if not isinstance(value, dict):
        raise AdapterInvalidError(f"{MANIFEST_FILE} has no object '{field}'; {_HOW_TO_GO_ON}")
    return value


def _check_system(content: dict[str, Any]) -> None:
    """The system prompt that an adapter was trained with, where the manifest holds it, must be the one it names."""
    system, expected = content.get("system"), _hash(content, "system_sha256", "system_sha256")
    if isinstance(system, str) and hashlib.sha256(system.encode()).hexdigest() != expected:
        raise AdapterInvalidError(
            f"{MANIFEST_FILE}: system is not the text of system_sha256; copy the package anew"
        )


def _companions(files: dict[str, Any]) -> dict[str, str]:
    names = sorted(files.keys() - {CONFIG_FILE, WEIGHTS_FILE})
    if len(names) > _MAX_COMPANIONS:
        raise AdapterInvalidError(f"{MANIFEST_FILE} lists more than {_MAX_COMPANIONS} further files")
    for name in names:
        if not _COMPANION.fullmatch(name):
            raise AdapterInvalidError(
                f"{MANIFEST_FILE} lists {name[:80]!r}; only reports (.json, .jsonl, .md, .yaml, .html) may lie "
                "beside an adapter"
            )
    return {name: _file_hash(files, name) for name in names}


def _text(content: dict[str, Any], field: str) -> str:
    value = content.get(field, "")
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _hash(content: dict[str, Any], field: str, shown: str, *, may_be_empty: bool = False) -> str | None:
    value = content.get(field)
    if value is None or (may_be_empty and value == ""):
        return value
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise AdapterInvalidError(f"{MANIFEST_FILE}: {shown} must be a SHA-256 of 64 hex digits")
    return value


def _file_hash(files: dict[str, Any], name: str) -> str:
    value = _hash(files, name, f"files[{name!r}]")
    if value is None:
        raise AdapterInvalidError(f"{MANIFEST_FILE} does not list {name}; {_HOW_TO_GO_ON}")
    return value

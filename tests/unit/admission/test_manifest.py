from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError
from loraplex_adapters.manifest import MAX_MANIFEST_BYTES, check_base, check_files, read_manifest
from tests.unit.admission.packages import (
    CONFIG,
    MANIFEST,
    SPEC,
    TEMPLATE_HASH,
    TOKENIZER_HASH,
    WEIGHTS,
    write_manifest,
)


def prove(folder: Path, template_hash: str = TEMPLATE_HASH, tokenizer_hash: str = TOKENIZER_HASH) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    check_files(manifest, folder)
    check_base(manifest, SPEC, template_hash, tokenizer_hash)


def change(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **fields}))


def test_a_package_without_a_manifest_has_none(package: Path) -> None:
    assert read_manifest(package) is None


def test_the_trainers_manifest_is_taken_with_keys_that_nobody_knows(package: Path) -> None:
    change(write_manifest(package), gate={"passed": True}, schema=2)

    prove(package)


def test_a_manifest_without_template_and_tokenizer_says_nothing_of_them(package: Path) -> None:
    write_manifest(package, template_sha256=None, tokenizer_sha256=None)

    prove(package, template_hash="3" * 64, tokenizer_hash="4" * 64)


def test_a_base_without_a_template_is_the_same_before_and_after(package: Path) -> None:
    write_manifest(package, template_sha256="")

    prove(package, template_hash="")
    with pytest.raises(AdapterIncompatibleError, match="chat template"):
        prove(package)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_the_manifest_does_not_describe_is_refused(package: Path, name: str) -> None:
    write_manifest(package)
    (package / name).write_bytes((package / name).read_bytes() + b" ")

    with pytest.raises(AdapterInvalidError, match=f"{name} is not the file"):
        prove(package)


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("fingerprint", "base model's weights"),
        ("template_sha256", "chat template"),
        ("tokenizer_sha256", "tokenizer"),
    ],
)
def test_another_base_is_refused_and_the_message_says_what_differs(
    package: Path, field: str, what: str
) -> None:
    write_manifest(package, **{field: "0" * 64})

    with pytest.raises(AdapterIncompatibleError, match=f": the {what} of its"):
        prove(package)


def test_all_that_differs_is_named_at_once(package: Path) -> None:
    write_manifest(package, fingerprint="0" * 64)

    with pytest.raises(AdapterIncompatibleError, match="weights and the chat template and the tokenizer"):
        prove(package, "3" * 64, "4" * 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": None},
        {"base": {}},
        {"base": {"fingerprint": "xyz"}},
        {"base": {"fingerprint": 7}},
        {"base": {"fingerprint": "0" * 64, "template_sha256": []}},
        {"files": []},
        {"files": {}},
        {"files": {CONFIG: "0" * 64}},
        {"files": {CONFIG: "0" * 64, WEIGHTS: "../" * 22}},
    ],
)
def test_a_manifest_that_is_not_the_trainers_is_refused(package: Path, fields: dict[str, Any]) -> None:
    change(write_manifest(package), **fields)

    with pytest.raises(AdapterInvalidError, match=r"manifest\.json"):
        read_manifest(package)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"files": {}, "files": {}}', b"{" + b" " * MAX_MANIFEST_BYTES + b"}"]
)
def test_a_malformed_or_large_manifest_is_refused(package: Path, raw: bytes) -> None:
    (package / MANIFEST).write_bytes(raw)

    with pytest.raises(AdapterInvalidError, match=r"manifest\.json"):
        read_manifest(package)


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (package / MANIFEST).symlink_to(tmp_path / "secret")

    with pytest.raises(AdapterInvalidError, match="link"):
        read_manifest(package)

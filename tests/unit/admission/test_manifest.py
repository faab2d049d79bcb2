from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.errors import AdapterIncompatibleError, AdapterInvalidError
from loraplex_adapters.manifest import (
    MAX_COMPANION_BYTES,
    MAX_MANIFEST_BYTES,
    check_base,
    check_files,
    read_manifest,
    unlisted_files,
)
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


def list_file(folder: Path, name: str, content: bytes | None = None, digest: str = "5" * 64) -> None:
    """Let the manifest list a further file; with its content, also write it and give its true hash."""
    manifest = json.loads((write_manifest(folder) / MANIFEST).read_text())
    if content is not None:
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
    change(folder, files={**manifest["files"], name: digest})


def test_a_report_beside_the_adapter_is_proved_where_it_is_there(package: Path) -> None:
    list_file(package, "report.md", b"# Good")
    prove(package)

    (package / "report.md").unlink()
    prove(package)  # only what is served travels to a server

    (package / "report.md").write_bytes(b"# Better")
    with pytest.raises(AdapterInvalidError, match=r"report\.md"):
        prove(package)


@pytest.mark.parametrize(
    "name", ["../report.md", "weights.bin", "run.py", ".hidden.md", "a/b.json", "x" * 80 + ".md"]
)
def test_only_reports_may_be_listed_beside_an_adapter(package: Path, name: str) -> None:
    list_file(package, name)

    with pytest.raises(AdapterInvalidError, match="only reports"):
        read_manifest(package)


def test_a_manifest_lists_a_bounded_number_of_reports(package: Path) -> None:
    files = json.loads((write_manifest(package) / MANIFEST).read_text())["files"]
    change(package, files={**files, **{f"r{n}.md": "5" * 64 for n in range(40)}})

    with pytest.raises(AdapterInvalidError, match="more than 32"):
        read_manifest(package)


def test_a_report_that_is_no_regular_file_is_refused(package: Path) -> None:
    list_file(package, "report.md")
    os.mkfifo(package / "report.md")

    with pytest.raises(AdapterInvalidError, match="not a regular file"):
        prove(package)


def test_a_huge_report_is_not_read(package: Path) -> None:
    list_file(package, "report.md")
    with (package / "report.md").open("wb") as file:
        file.truncate(MAX_COMPANION_BYTES + 1)

    with pytest.raises(AdapterInvalidError, match="more than"):
        prove(package)


@pytest.mark.parametrize("system_sha256", [None, "6" * 64])
def test_a_system_prompt_must_be_the_one_of_its_hash(package: Path, system_sha256: str | None) -> None:
    change(write_manifest(package), system="Be brief.", system_sha256=system_sha256)
    with pytest.raises(AdapterInvalidError, match="system"):
        read_manifest(package)

    change(package, system_sha256=hashlib.sha256(b"Be brief.").hexdigest())
    assert read_manifest(package) is not None


def test_files_that_nobody_lists_are_told_by_name(package: Path) -> None:
    list_file(package, "report.md", b"# Good")
    (package / "optimizer.pt").write_bytes(b"")
    (package / "README.md").write_bytes(b"")
    manifest = read_manifest(package)

    assert manifest is not None
    assert unlisted_files(manifest, package) == ["README.md", "optimizer.pt"]
    prove(package)  # the server never opens them

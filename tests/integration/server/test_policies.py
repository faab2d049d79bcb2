"""A server that trusts nobody: signatures are required, and tenants have quotas."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraplex_client import LoraplexApiError, LoraplexClient, OverloadedError, PreconditionError
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import running_server
from tests.unit.admission.test_signing import Key, make_key, sign

MAX_ADAPTERS = 2


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"), "release-team")


@pytest.fixture(scope="module")
def strict_client(
    tiny_base: Path, key: Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoraplexClient]:
    settings = {
        "signature_policy": "require",
        "signature_keys": key.public,
        "max_adapters_per_tenant": MAX_ADAPTERS,
        "max_bytes_per_tenant": 200_000,
    }
    with (
        running_server(tiny_base, tmp_path_factory.mktemp("strict"), **settings) as server,
        server.client() as client,
    ):
        yield client


def signed_copy(folder: Path, key: Key, tmp_path: Path, name: str) -> Path:
    copy = tmp_path / name
    shutil.copytree(folder, copy)
    sign(copy, key)
    return copy


def test_a_signed_package_names_its_signer_and_any_other_is_refused(
    strict_client: LoraplexClient, packages: Path, key: Key, tmp_path: Path
) -> None:
    """Row 12."""
    with pytest.raises(PreconditionError) as caught:
        strict_client.adapters.upload("signed/red", packages / "red")
    assert caught.value.reason == "SIGNATURE_REQUIRED"

    foreign = signed_copy(packages / "red", make_key(tmp_path, "foreign"), tmp_path, "foreign-red")
    with pytest.raises(PreconditionError) as caught:
        strict_client.adapters.upload("signed/red", foreign)
    assert caught.value.reason == "SIGNATURE_INVALID"

    registered = strict_client.adapters.upload(
        "signed/red", signed_copy(packages / "red", key, tmp_path, "red")
    )
    assert registered.version.signer.startswith("key release-team")
    strict_client.adapters.delete("signed/red")


def test_a_tenant_registers_as_much_as_its_quota_and_no_more(
    strict_client: LoraplexClient, new_adapter: NewAdapter, packages: Path, key: Key, tmp_path: Path
) -> None:
    """Row 13."""
    for number in range(MAX_ADAPTERS):
        folder = signed_copy(packages / "red", key, tmp_path, f"copy{number}")
        strict_client.adapters.upload(f"small/a{number}", folder)
    with pytest.raises(OverloadedError, match="2 adapters") as caught:
        strict_client.adapters.upload("small/a9", signed_copy(packages / "red", key, tmp_path, "copy9"))
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.retry_after_s is None

    large = signed_copy(new_adapter("large-for-quota", r=64), key, tmp_path, "large")
    with pytest.raises(LoraplexApiError, match="bytes") as refused:
        strict_client.adapters.upload("large/a", large)
    assert refused.value.reason == "QUOTA_EXCEEDED"
    # Another tenant has a quota of its own.
    strict_client.adapters.upload("other/a", signed_copy(packages / "green", key, tmp_path, "green"))
    for name in ("small/a0", "small/a1", "other/a"):
        strict_client.adapters.delete(name)

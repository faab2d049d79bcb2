from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import (
    AlreadyExistsError,
    AsyncLoraplexClient,
    InvalidRequestError,
    LoraplexApiError,
    LoraplexClient,
    NotFoundError,
    VersionState,
)
from tests.integration.conftest import ADAPTERS, NewAdapter
from tests.integration.live_server import LiveServer, eventually
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import GREEDY, PROMPT


def test_an_adapter_registered_from_a_folder_answers_at_once(
    client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    folder = new_adapter("fresh", r=3, target_modules=["q_proj", "v_proj"])

    adapter = client.adapters.create("team-1/fresh.v2", folder)
    answer = client.generate(PROMPT, adapter="team-1/fresh.v2", **GREEDY)

    assert adapter.state is VersionState.READY
    assert adapter.rank == 3
    assert adapter.target_modules == ("q_proj", "v_proj")
    assert adapter.served_module_count == 4  # two modules in each of two layers
    assert adapter.base_fingerprint == client.server_info().base_model.fingerprint
    assert abs(datetime.now(UTC) - adapter.create_time) < timedelta(minutes=1)
    assert adapter.is_resident  # golden prompts were asked of it
    assert answer.adapter_digest == adapter.digest
    assert client.adapters.get("team-1/fresh.v2").stable.is_resident
    client.adapters.delete("team-1/fresh.v2")


async def test_an_upload_registers_the_same_package_as_its_folder_does(
    client: LoraplexClient, aclient: AsyncLoraplexClient, new_adapter: NewAdapter
) -> None:
    folder = new_adapter("sent")
    by_folder = client.adapters.create("sent/by-folder", folder)

    by_sync = client.adapters.upload("sent/by-sync", folder, expected_digest=by_folder.digest.upper())
    by_async = await aclient.adapters.upload("sent/by-async", folder)

    assert by_sync.digest == by_async.digest == by_folder.digest
    assert by_sync.size_bytes == by_folder.size_bytes > 0
    for name in ("sent/by-folder", "sent/by-sync", "sent/by-async"):
        client.adapters.delete(name)


def test_registering_the_same_package_again_changes_nothing(client: LoraplexClient, packages: Path) -> None:
    before = client.adapters.get("red")

    assert client.adapters.create("red", packages / "red").adapter.etag == before.etag
    assert client.adapters.upload("red", packages / "red").digest == before.digest


def test_a_name_in_use_is_not_given_to_other_weights(client: LoraplexClient, packages: Path) -> None:
    """Row 15."""
    before = client.generate(PROMPT, adapter="red", **GREEDY)

    for register in (client.adapters.create, client.adapters.upload):
        with pytest.raises(AlreadyExistsError) as caught:
            register("red", packages / "green")
        assert caught.value.reason == "ADAPTER_EXISTS"

    assert client.generate(PROMPT, adapter="red", **GREEDY).token_ids == before.token_ids


def test_of_many_who_claim_a_name_at_once_one_gets_it(
    server: LiveServer, client: LoraplexClient, packages: Path
) -> None:
    def claim(package: str) -> str | None:
        try:
            return client.adapters.upload("claimed", packages / package).digest
        except AlreadyExistsError:
            return None

    with ThreadPoolExecutor(6) as pool:
        given = set(pool.map(claim, ADAPTERS * 2)) - {None}

    assert given == {client.adapters.get("claimed").digest}
    client.adapters.delete("claimed")


def test_validating_checks_everything_and_stores_nothing(
    client: LoraplexClient, packages: Path, new_adapter: NewAdapter, server: LiveServer
) -> None:
    folder = new_adapter("candidate")

    seen = client.adapters.create("candidate", folder, validate_only=True)

    assert client.adapters.upload("candidate", folder, validate_only=True).digest == seen.digest
    with pytest.raises(NotFoundError):
        client.adapters.get("candidate")
    with pytest.raises(AlreadyExistsError):
        client.adapters.create("red", folder, validate_only=True)
    eventually(lambda: not (server.data_dir / "adapters" / seen.digest).exists())


@pytest.mark.parametrize(
    "name", ["", "../x", "a/../b", "/a", "a/", "a//b", "A", "a b", "a,b", "a\0", "\u0430dmin", "x" * 129]
)
def test_a_malformed_name_is_refused_however_it_is_registered(
    client: LoraplexClient, packages: Path, name: str
) -> None:
    """Row 5. vLLM #46287: a name from a request left the folder of adapters."""
    for register in (client.adapters.create, client.adapters.upload):
        with pytest.raises(InvalidRequestError) as caught:
            register(name, packages / "red")
        assert [violation.field for violation in caught.value.violations] == ["registration.name"]


def test_what_is_not_registered_is_not_found(client: LoraplexClient) -> None:
    for call in (client.adapters.get, client.adapters.delete):
        with pytest.raises(NotFoundError) as caught:
            call("nobody")
        assert caught.value.reason == "ADAPTER_NOT_FOUND"


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
def test_pages_of_any_size_list_every_adapter_once_in_order_of_name(
    client: LoraplexClient, page_size: int
) -> None:
    assert [adapter.name for adapter in client.adapters.list(page_size)] == sorted(ADAPTERS)


async def test_the_async_client_lists_all_pages_too(aclient: AsyncLoraplexClient) -> None:
    assert [adapter.name async for adapter in aclient.adapters.list(page_size=2)] == sorted(ADAPTERS)


def test_what_is_registered_between_two_pages_shifts_no_other(server: LiveServer, packages: Path) -> None:
    with server.client() as client:
        pages = client.adapters.list(page_size=1)
        seen = [next(pages).name]
        client.adapters.create("aaa-before", packages / "red")
        client.adapters.create("zzz-after", packages / "red")
        seen += [adapter.name for adapter in pages]
        client.adapters.delete("aaa-before")
        client.adapters.delete("zzz-after")

    assert seen == [*sorted(ADAPTERS), "zzz-after"]


@pytest.mark.parametrize(
    ("field", "request_fields"),
    [
        ("page_size", {"page_size": 1001}),
        ("page_token", {"page_token": "made up"}),
        ("page_token", {"page_token": "bWFkZSB1cA=="}),
        ("page_token", {"page_token": "東京"}),
    ],
)
def test_a_page_that_was_never_offered_is_refused(
    server: LiveServer, field: str, request_fields: dict[str, Any]
) -> None:
    with raw_channel(server) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        failure = failure_of(lambda: stub.ListAdapters(adapter_pb2.ListAdaptersRequest(**request_fields)))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in failure.violations] == [field]


def test_deleting_takes_the_name_the_package_and_the_slot(
    server: LiveServer, client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    """Row 16, without streams."""
    adapter = client.adapters.create("short-lived", new_adapter("short-lived"))
    client.generate(PROMPT, adapter="short-lived", **GREEDY)
    slots_used = client.server_info().load.adapter_slots_used

    client.adapters.delete("short-lived")

    for use in (client.adapters.get, client.adapters.delete, lambda name: client.generate("x", adapter=name)):
        with pytest.raises(NotFoundError):
            use("short-lived")
    eventually(lambda: not (server.data_dir / "adapters" / adapter.digest).exists())
    eventually(lambda: client.server_info().load.adapter_slots_used == slots_used - 1)


def test_a_package_stays_while_another_name_needs_it(
    client: LoraplexClient, packages: Path, new_adapter: NewAdapter
) -> None:
    folder = new_adapter("shared")
    client.adapters.create("shared/one", folder)
    client.adapters.create("shared/two", folder)

    client.adapters.delete("shared/one")

    assert client.generate(PROMPT, adapter="shared/two", **GREEDY).usage.completion_tokens == 24
    client.adapters.delete("shared/two")


def test_a_deleted_name_can_be_given_to_other_weights_and_never_answers_with_the_old_ones(
    client: LoraplexClient, packages: Path
) -> None:
    client.adapters.create("reused", packages / "red")
    old = client.generate(PROMPT, adapter="reused", **GREEDY)
    client.adapters.delete("reused")
    client.adapters.create("reused", packages / "green")

    new = client.generate(PROMPT, adapter="reused", **GREEDY)

    assert new.token_ids == client.generate(PROMPT, adapter="green", **GREEDY).token_ids != old.token_ids
    client.adapters.delete("reused")


def test_the_folder_may_vanish_once_the_adapter_is_registered(
    client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    folder = new_adapter("vanishing")
    client.adapters.create("vanishing", folder)
    shutil.rmtree(folder)

    assert client.generate(PROMPT, adapter="vanishing", **GREEDY).usage.completion_tokens == 24
    client.adapters.delete("vanishing")


def test_a_server_without_adapter_roots_reads_no_folder(tight_client: LoraplexClient, packages: Path) -> None:
    with pytest.raises(LoraplexApiError) as caught:
        tight_client.adapters.create("x", packages / "red")

    assert [violation.field for violation in caught.value.violations] == ["path"]

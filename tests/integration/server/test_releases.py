"""What AdapterService promises of releases, one plain test a promise, with the client on a real server."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import (
    Adapter,
    AdapterEventKind,
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    InvalidRequestError,
    LoraplexApiError,
    LoraplexClient,
    NotFoundError,
    PlannedAdapters,
    PreconditionError,
    Tier,
    VersionState,
)
from tests.integration.conftest import ADAPTERS, NewAdapter
from tests.integration.live_server import LiveServer, eventually, free_port, running_server
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS, GREEDY, PROMPT
from tests.unit.admission.test_sources import Site

SHORT: dict[str, Any] = {**GREEDY, "max_tokens": 8}
SLOTS = len(ADAPTERS)


@pytest.fixture
def client(few_slots_server: LiveServer) -> Iterator[LoraplexClient]:
    with few_slots_server.client() as made:
        yield made


@pytest.fixture
def shop(client: LoraplexClient, packages: Path) -> Iterator[Adapter]:
    """An adapter with two versions: red's weights, which are stable, and green's, which are canary."""
    client.adapters.create("shop", packages / "red")
    yield client.adapters.create(
        "shop", packages / "green", on_existing="add_version", alias="canary"
    ).adapter
    with suppress(NotFoundError):  # the test did so
        client.adapters.delete("shop")


@pytest.fixture
def filler(client: LoraplexClient, new_adapter: NewAdapter) -> Iterator[None]:
    """An adapter "filler", one more than slots."""
    client.adapters.upload("filler", new_adapter("filler"))
    yield
    client.adapters.delete("filler")


def served(client: LoraplexClient, adapter: str = "shop", **options: Any) -> str:
    """The digest that answers."""
    return client.generate(PROMPT, adapter=adapter, **SHORT, **options).adapter_digest


def reason_of(call: Any, *arguments: Any, **options: Any) -> str:
    """Why a call is refused."""
    with pytest.raises(LoraplexApiError) as caught:
        call(*arguments, **options)
    return caught.value.reason


def test_a_request_may_name_an_alias_or_a_digest_and_is_told_which_digest_answered(
    client: LoraplexClient, shop: Adapter
) -> None:
    stable, canary = shop.aliases["stable"], shop.aliases["canary"]

    assert served(client, "shop") == served(client, "shop@stable") == stable
    assert served(client, "shop@canary") == served(client, f"shop@{canary[:12]}") == canary
    assert served(client, f"tenants/default/adapters/shop@sha256:{canary}") == canary
    assert reason_of(served, client, "shop@beta") == "ADAPTER_NOT_FOUND"
    assert reason_of(served, client, f"shop@{'0' * 12}") == "ADAPTER_NOT_FOUND"


def test_what_cannot_name_a_version_or_alias_is_a_violation_of_its_field(
    client: LoraplexClient, shop: Adapter
) -> None:
    """Not the answer that there is no version ''."""
    calls = client.adapters
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("version", lambda: calls.promote("shop", "")),
        ("version", lambda: calls.promote("shop", "0" * 11)),
        ("alias", lambda: calls.promote("shop", "canary", alias="Beta")),
        ("alias", lambda: calls.rollback("shop", alias="Beta")),
        ("alias", lambda: calls.delete_alias("shop", "")),
        ("traffic[1].target", lambda: calls.split("shop", {"stable": 1, "": 1})),
        ("target", lambda: calls.set_shadow("shop", "@canary")),
        ("version", lambda: calls.deprecate("shop", "")),
        ("version", lambda: calls.delete_version("shop", "canary")),
    ]
    for field, call in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert [violation.field for violation in caught.value.violations] == [field]


def test_a_digest_may_be_written_in_capitals_and_with_its_kind(client: LoraplexClient, shop: Adapter) -> None:
    canary = shop.aliases["canary"]
    shouted = f"sha256:{canary[:12].upper()}"

    assert served(client, f"shop@{shouted}") == canary
    assert client.adapters.split("shop", {"stable": 1, shouted: 1}).traffic[1].target == canary
    shadow = client.adapters.set_shadow("shop", shouted).shadow
    assert shadow is not None
    assert shadow.target == canary
    assert client.adapters.promote("shop", shouted).digest == canary
    assert [a.name for a in client.adapters.list(filter=f"digest = {shouted} AND name = shop")] == ["shop"]


def test_promoting_moves_new_requests_at_once_and_rolling_back_returns_them_step_by_step(
    client: LoraplexClient, shop: Adapter, packages: Path
) -> None:
    first, second = shop.aliases["stable"], shop.aliases["canary"]
    assert client.adapters.promote("shop", "canary").digest == served(client) == second
    third = client.adapters.create("shop", packages / "blue", on_existing="promote").digest
    assert served(client) == third

    assert client.adapters.rollback("shop").digest == served(client) == second
    assert client.adapters.rollback("shop").digest == served(client) == first
    assert reason_of(client.adapters.rollback, "shop") == "NOTHING_TO_ROLL_BACK"


def test_a_split_spreads_requests_by_weight_and_keeps_each_routing_key_where_it_is(
    client: LoraplexClient, shop: Adapter
) -> None:
    client.adapters.split("shop", {"stable": 3, "canary": 1})
    keys = [f"customer-{number}" for number in range(160)]

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda key: served(client, routing_key=key), keys))
        again = list(pool.map(lambda key: served(client, routing_key=key), keys))

    assert again == digests
    counts = Counter(digests)
    assert set(counts) == set(shop.aliases.values())
    # Keys, not chance, decide; these hundred and sixty always fall so.
    assert 0.15 < counts[shop.aliases["canary"]] / len(keys) < 0.35
    assert served(client, "shop@canary") == shop.aliases["canary"]  # named ones are not spread

    assert client.adapters.split("shop", {}).traffic == ()
    assert {served(client, routing_key=key) for key in keys[:10]} == {shop.aliases["stable"]}


def test_requests_without_a_routing_key_are_spread_too(client: LoraplexClient, shop: Adapter) -> None:
    client.adapters.split("shop", {"stable": 1, "canary": 1})

    assert {served(client) for _ in range(64)} == set(shop.aliases.values())


def test_promoting_stable_ends_a_split(client: LoraplexClient, shop: Adapter) -> None:
    client.adapters.split("shop", {"stable": 1, "canary": 1})

    assert client.adapters.promote("shop", "canary").traffic == ()

    assert {served(client, routing_key=str(key)) for key in range(8)} == {shop.aliases["canary"]}


def test_a_shadow_answers_unseen_and_is_compared(client: LoraplexClient, shop: Adapter) -> None:
    alone = client.generate(PROMPT, adapter="shop", **SHORT)
    client.adapters.set_shadow("shop", "canary")

    answers = [client.generate(PROMPT, adapter="shop", **SHORT) for _ in range(3)]

    assert {(answer.adapter_digest, answer.token_ids) for answer in answers} == {
        (alone.adapter_digest, alone.token_ids)
    }
    eventually(lambda: shadow_counts(client) == (3, 0, 0))
    client.adapters.promote(
        "shop", "stable", alias="canary"
    )  # the shadow follows its alias, to equal weights
    client.generate(PROMPT, adapter="shop", **SHORT)
    assert shadow_counts(client)[0] == 3  # a version is not its own shadow
    ended = client.adapters.set_shadow("shop", "")
    assert ended.shadow is None


def shadow_counts(client: LoraplexClient) -> tuple[int, int, int]:
    """(compared, equal, dropped)."""
    shadow = client.adapters.get("shop").shadow
    assert shadow is not None
    return shadow.compared, shadow.equal, shadow.dropped


def test_a_watch_tells_every_change_in_order_and_goes_on_behind_any_token(
    client: LoraplexClient, packages: Path
) -> None:
    before = client.adapters.create("watched", packages / "red")
    with client.adapters.watch("watched", resume_token="0") as watch:
        first, token = next(watch)
        other = client.adapters.create("watched", packages / "green", on_existing="add_version")
        client.adapters.promote("watched", other.digest)
        client.adapters.rollback("watched")
        client.adapters.update_labels("watched", {"a": "b"})
        client.adapters.deprecate("watched", other.digest)
        client.adapters.delete_version("watched", other.digest)
        client.adapters.delete("watched")
        rest = list(itertools.islice(watch, 7))
    kinds = AdapterEventKind

    assert (first.kind, first.digest) == (kinds.REGISTERED, before.digest)
    assert [event.kind for event, _ in rest] == [
        kinds.REGISTERED,
        kinds.PROMOTED,
        kinds.ROLLED_BACK,
        kinds.UPDATED,
        kinds.DEPRECATED,
        kinds.VERSION_DELETED,
        kinds.DELETED,
    ]
    assert (rest[1][0].aliases, rest[1][0].digest) == (("stable",), other.digest)
    assert [event.time for event, _ in rest] == sorted(event.time for event, _ in rest)
    for resumed_at in (
        0,
        3,
    ):  # another connection takes up where one broke off: nothing twice, nothing left out
        token = rest[resumed_at][1]
        with client.adapters.watch("watched", resume_token=token) as watch:
            assert list(itertools.islice(watch, 6 - resumed_at)) == rest[resumed_at + 1 :]


def test_a_watch_outlives_the_server_that_it_began_on(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    settings = {"port": free_port(), "golden_prompts": False}
    with (
        ThreadPoolExecutor(1) as pool,
        LoraplexClient(f"127.0.0.1:{settings['port']}", timeout_s=60) as client,
        client.adapters.watch(resume_token="0") as watch,
    ):
        with running_server(tiny_base, tmp_path, **settings):
            first = client.adapters.upload("kept", packages / "red")
            assert next(watch)[0].digest == first.digest
            client.adapters.promote("kept", "stable", alias="canary")  # not read before the server is gone
        rest = pool.submit(lambda: [event.kind.value for event, _ in itertools.islice(watch, 2)])
        with running_server(tiny_base, tmp_path, **settings):
            client.adapters.delete("kept")
            assert rest.result(timeout=60) == ["promoted", "deleted"]


def test_a_watch_of_a_tenant_sees_no_other_and_one_without_a_token_begins_now(
    client: LoraplexClient, packages: Path
) -> None:
    with client.adapters.watch("tenants/one", resume_token="0") as of_one, client.adapters.watch() as of_all:
        with ThreadPoolExecutor(1) as pool:
            earliest = pool.submit(next, of_all)
            eventually(lambda: change_is_seen(client, packages, earliest))
        client.adapters.create("two/x", packages / "red")
        client.adapters.create("one/x", packages / "red")
        event, _ = next(of_one)
        client.adapters.delete("two/x")
        client.adapters.delete("one/x")

    assert earliest.result()[0].name == "three/x"
    assert event.resource_name == "tenants/one/adapters/x"
    assert reason_of(next, client.adapters.watch(resume_token="soon")) == "INVALID_REQUEST"


def change_is_seen(client: LoraplexClient, packages: Path, event: Any) -> bool:
    """Whether a watch that has just begun has seen something; makes something to be seen."""
    client.adapters.create("three/x", packages / "red")
    client.adapters.delete("three/x")
    return bool(event.done())


@pytest.mark.usefixtures("filler")
def test_warming_brings_a_version_into_a_slot_before_anyone_asks(
    client: LoraplexClient, shop: Adapter, few_slots_server: LiveServer
) -> None:
    for name in ("red", "blue", ""):  # others in the slots
        served(client, name)
    make_cold(client, shop.aliases["canary"])
    loads = few_slots_server.metric("loraplex_adapter_loads_total")

    (warmed,) = client.adapters.warm("shop@canary")

    assert warmed.digest == shop.aliases["canary"]
    assert warmed.residency.tier is Tier.SLOT
    assert warmed.residency.activate_time is not None
    assert client.adapters.get("shop").version("canary").is_resident
    assert client.generate(PROMPT, adapter="shop@canary", **SHORT).timings.adapter_load_seconds == 0
    eventually(lambda: few_slots_server.metric("loraplex_adapter_loads_total") == loads + 1)


def make_cold(client: LoraplexClient, digest: str) -> None:
    """Ask for others until those weights have no slot."""

    def is_cold() -> bool:
        for name in ("red", "blue", "filler"):
            served(client, name)
        versions = [version for adapter in client.adapters.list() for version in adapter.versions]
        return not any(version.is_resident for version in versions if version.digest == digest)

    eventually(is_cold)


@pytest.mark.usefixtures("filler")
def test_warming_where_every_slot_stays_in_use_ends_with_its_deadline(client: LoraplexClient) -> None:
    streams = [client.stream(PROMPT, adapter=name, **ENDLESS) for name in ADAPTERS]
    for stream in streams:
        next(stream)
    assert not client.adapters.get("filler").stable.is_resident

    with pytest.raises(DeadlineError):
        client.adapters.warm("filler", timeout_s=0.5)

    for stream in streams:
        stream.cancel()
    assert client.adapters.warm("filler")[0].is_resident


@pytest.mark.usefixtures("filler")
def test_what_is_pinned_stays_in_its_slot_whatever_others_need(
    client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    pinned = client.adapters.create("pinned", new_adapter("pinned"))
    assert client.adapters.pin("pinned").pinned

    def stays() -> bool:
        before = client.adapters.get("pinned").stable.residency
        for name in (
            "red",
            "green",
            "blue",
            "filler",
        ) * 2:  # more than slots, and nobody asks for the pinned one
            served(client, name)
        return before.tier is Tier.SLOT and client.adapters.get("pinned").stable.residency == before

    eventually(stays)  # the engine is told a moment after the call
    client.adapters.pin("red")
    assert reason_of(client.adapters.pin, "green") == "TOO_MANY_PINNED"  # one slot is for the others

    assert not client.adapters.unpin("red").pinned
    client.adapters.unpin("pinned")
    make_cold(client, pinned.digest)
    client.adapters.delete("pinned")


@pytest.mark.usefixtures("filler")
def test_a_pinned_name_may_be_rolled_back_where_slots_are_short_and_nobody_else_becomes_unavailable(
    client: LoraplexClient, shop: Adapter, few_slots_server: LiveServer
) -> None:
    client.adapters.promote("shop", "canary")
    for name in ("green", "blue", "shop"):  # two versions: "shop" serves green's
        client.adapters.pin(name)

    rolled_back = client.adapters.rollback("shop")

    assert rolled_back.pinned
    eventually(lambda: "slot of their own left_out=shop count=1" in few_slots_server.log())
    assert served(client, "filler")
    assert served(client, "shop") == shop.digest
    assert few_slots_server.metric("loraplex_adapter_slots_pinned") == 2
    for name in ("green", "blue"):
        client.adapters.unpin(name)


def test_a_deprecated_version_is_served_where_it_is_named_and_not_promoted(
    client: LoraplexClient, shop: Adapter
) -> None:
    canary = shop.aliases["canary"]
    marked = client.adapters.deprecate("shop", canary)

    assert marked.version(canary).state is VersionState.DEPRECATED
    assert served(client, "shop@canary") == canary
    assert reason_of(client.adapters.promote, "shop", canary) == "VERSION_DEPRECATED"

    assert client.adapters.deprecate("shop", canary, undo=True).version(canary).state is VersionState.READY
    assert client.adapters.promote("shop", canary).digest == canary


def test_a_version_that_something_names_is_not_deleted(client: LoraplexClient, shop: Adapter) -> None:
    stable, canary = shop.aliases["stable"], shop.aliases["canary"]
    assert reason_of(client.adapters.delete_version, "shop", canary) == "VERSION_IN_USE"
    client.adapters.split("shop", {"stable": 1, "canary": 1})
    assert reason_of(client.adapters.delete_alias, "shop", "canary") == "ALIAS_IN_USE"
    assert reason_of(client.adapters.delete_alias, "shop", "stable") == "ALIAS_IN_USE"
    client.adapters.split("shop", {})
    client.adapters.delete_alias("shop", "canary")

    left = client.adapters.delete_version("shop", canary)

    assert [version.digest for version in left.versions] == [stable]
    assert reason_of(served, client, f"shop@{canary}") == "ADAPTER_NOT_FOUND"


def test_a_change_whose_answer_was_lost_is_sent_again_and_happens_once(
    client: LoraplexClient, shop: Adapter
) -> None:
    """Row 14: the same request id with the same content is one change, with other content none."""
    canary = shop.aliases["canary"]
    first = client.adapters.promote("shop", "canary", request_id="the-one")
    client.adapters.rollback("shop")  # by somebody else, meanwhile

    again = client.adapters.promote("shop", "canary", request_id="the-one")

    assert again == first
    assert again.digest == canary  # the first answer, though it is not true any more
    assert served(client) == shop.aliases["stable"]
    with pytest.raises(AlreadyExistsError) as caught:
        client.adapters.promote("shop", shop.aliases["stable"], request_id="the-one")
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_a_registration_and_a_deletion_sent_again_happen_once(
    client: LoraplexClient, packages: Path, few_slots_server: LiveServer
) -> None:
    """Row 14, for calls that make and remove adapters; the log tells of each registration, and of no repetition."""
    first = client.adapters.upload("twice", packages / "red", request_id="make")
    client.adapters.update_labels("twice", {"changed": "since"})
    again = client.adapters.upload("twice", packages / "red", request_id="make")
    assert again.adapter.etag == first.adapter.etag
    assert (
        reason_of(client.adapters.upload, "twice", packages / "green", request_id="make")
        == "REQUEST_ID_REUSED"
    )

    client.adapters.delete("twice", request_id="end")
    made_anew = client.adapters.upload("twice", packages / "red", request_id="make-anew")
    client.adapters.delete("twice", request_id="end")

    assert client.adapters.get("twice").etag == made_anew.adapter.etag  # the new one is not the one meant
    client.adapters.delete("twice")
    repeated = client.adapters.upload("twice", packages / "red", request_id="make-anew")
    assert repeated.adapter.etag == made_anew.adapter.etag
    assert "twice" not in [adapter.name for adapter in client.adapters.list()]
    assert few_slots_server.log().count("version registered adapter=twice ") == 2


def test_a_stale_etag_changes_nothing(client: LoraplexClient, shop: Adapter) -> None:
    """Row 15."""
    newer = client.adapters.update_labels("shop", {"team": "a"}, etag=shop.etag)
    changes: list[Any] = [
        lambda: client.adapters.promote("shop", "canary", etag=shop.etag),
        lambda: client.adapters.rollback("shop", etag=shop.etag),
        lambda: client.adapters.split("shop", {"canary": 1}, etag=shop.etag),
        lambda: client.adapters.set_shadow("shop", "canary", etag=shop.etag),
        lambda: client.adapters.pin("shop", etag=shop.etag),
        lambda: client.adapters.deprecate("shop", shop.aliases["canary"], etag=shop.etag),
        lambda: client.adapters.delete_alias("shop", "canary", etag=shop.etag),
        lambda: client.adapters.delete_version("shop", shop.aliases["canary"], etag=shop.etag),
        lambda: client.adapters.delete("shop", etag=shop.etag),
    ]
    for change in changes:
        with pytest.raises(ConflictError) as caught:
            change()
        assert caught.value.reason == "ETAG_MISMATCH"

    assert client.adapters.get("shop").etag == newer.etag
    client.adapters.delete("shop", etag=newer.etag)


def test_a_list_can_be_filtered_and_paged(client: LoraplexClient, shop: Adapter, packages: Path) -> None:
    for number in range(3):
        client.adapters.create(f"listed/a{number}", packages / "red", labels={"team": f"t {number % 2}"})
    client.adapters.deprecate("listed/a2", client.adapters.get("listed/a2").digest)

    def names(filter: str, parent: str = "", page_size: int = 1) -> list[str]:
        return [adapter.name for adapter in client.adapters.list(page_size, parent=parent, filter=filter)]

    assert names("", "tenants/listed") == ["listed/a0", "listed/a1", "listed/a2"]
    assert names('labels.team = "t 0"') == ["listed/a0", "listed/a2"]
    assert names('labels.team = "t 0" AND state = DEPRECATED') == ["listed/a2"]
    assert names("alias = canary") == ["shop"]
    assert names(f"digest = {shop.aliases['canary'][:12]}") == ["green", "shop"]
    assert names("name = sho*") == ["shop"]
    assert names("pinned = true") == []
    for malformed in ("team = x", "state = ", "alias canary", "a = b OR c = d"):
        with pytest.raises(InvalidRequestError) as caught:
            names(malformed)
        assert [violation.field for violation in caught.value.violations] == ["filter"]
    for number in range(3):
        client.adapters.delete(f"listed/a{number}")


def test_validating_tells_what_would_be_and_changes_nothing(
    client: LoraplexClient, shop: Adapter, packages: Path
) -> None:
    seen = client.adapters.create("shop", packages / "blue", on_existing="promote", validate_only=True)

    assert seen.adapter.digest == seen.digest == client.adapters.get("blue").digest
    assert client.adapters.get("shop").etag == shop.etag
    assert served(client) == shop.aliases["stable"]
    assert (
        reason_of(client.adapters.create, "shop", packages / "blue", validate_only=True) == "ADAPTER_EXISTS"
    )


def test_a_package_can_come_from_a_url(
    client: LoraplexClient, packages: Path, few_slots_server: LiveServer
) -> None:
    site = Site(packages / "red")
    try:
        by_http = client.adapters.create("by-url/http", url=f"{site.url}/adapters/red?key=s3cr3t")
    finally:
        site.close()
    by_file = client.adapters.create("by-url/file", url=(packages / "red").as_uri())

    assert by_http.digest == by_file.digest == client.adapters.get("red").digest
    assert by_file.version.source.startswith("file://")
    assert by_http.version.source == f"{site.url}/adapters/red"
    assert "s3cr3t" not in few_slots_server.log()
    assert served(client, "by-url/http") == by_http.digest
    with pytest.raises(PreconditionError) as caught:
        client.adapters.create("by-url/nowhere", url=f"{site.url}/adapters/red")
    assert caught.value.reason == "SOURCE_UNAVAILABLE"
    assert reason_of(client.adapters.create, "by-url/nowhere", url="file:///etc") == "INVALID_REQUEST"
    for name in ("by-url/http", "by-url/file"):
        client.adapters.delete(name)


def test_a_server_reads_no_url_of_a_private_network_unless_it_is_allowed_to(
    server: LiveServer, packages: Path
) -> None:
    site = Site(packages / "red")
    try:
        with server.client() as client:
            assert reason_of(client.adapters.create, "by-url", url=site.url) == "SOURCE_UNAVAILABLE"
        assert site.requests == []
    finally:
        site.close()


def test_an_upload_that_broke_off_is_gone_on_with(
    client: LoraplexClient, few_slots_server: LiveServer, packages: Path
) -> None:
    config = (packages / "red" / "adapter_config.json").read_bytes()
    total = len(config) + (packages / "red" / "adapter_model.safetensors").stat().st_size
    over = threading.Event()

    def half() -> Iterator[adapter_pb2.UploadAdapterRequest]:
        registration = adapter_pb2.Registration(name="resumed")
        header = adapter_pb2.UploadAdapterRequest.Header(registration=registration, upload_id="ci-17")
        chunk = adapter_pb2.UploadAdapterRequest.Chunk(file_name="adapter_config.json", data=config)
        yield adapter_pb2.UploadAdapterRequest(header=header)
        yield adapter_pb2.UploadAdapterRequest(chunk=chunk)
        over.wait(60)

    with raw_channel(few_slots_server) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        request = adapter_pb2.GetUploadRequest(upload_id="ci-17")

        def has_arrived() -> bool:
            with suppress(grpc.RpcError):
                return dict(stub.GetUpload(request).received_bytes) == {"adapter_config.json": len(config)}
            return False

        broken = stub.UploadAdapter.future(half())
        eventually(has_arrived)
        assert failure_of(lambda: stub.UploadAdapter(half())).reason == "UPLOAD_BUSY"
        broken.cancel()
        over.set()
        sent: list[int] = []
        registered = client.adapters.upload(
            "resumed", packages / "red", upload_id="ci-17", on_progress=lambda done, of: sent.append(done)
        )

        assert sent[0] > len(config)  # the configuration was not sent again
        assert sent[-1] == total
        assert registered.digest == client.adapters.get("red").digest
        assert failure_of(lambda: stub.GetUpload(request)).code is grpc.StatusCode.NOT_FOUND
    client.adapters.delete("resumed")


def test_requests_that_run_finish_on_the_version_they_began_with(
    client: LoraplexClient, shop: Adapter
) -> None:
    """Row 16, for an update: the stream ends on the old digest, new calls have the new one."""
    alone = client.generate(PROMPT, adapter="shop", **{**SHORT, "max_tokens": 400})
    stream = client.stream(
        PROMPT, adapter="shop", **{**ENDLESS, "max_tokens": 400, "include_token_ids": True}
    )
    events = [next(stream), next(stream)]

    client.adapters.promote("shop", "canary")
    assert served(client) == shop.aliases["canary"]
    events += list(stream)

    tokens = [token for event in events for token in getattr(event, "token_ids", ())]
    assert tuple(tokens) == alone.token_ids


def test_a_plan_is_kept(client: LoraplexClient, shop: Adapter) -> None:
    """vLLM #20160, #17003: nobody could tell beforehand how many adapters of which ranks fit."""
    red = client.adapters.get("red").stable
    plan = client.adapters.plan(
        [PlannedAdapters(rank=red.rank, count=SLOTS), PlannedAdapters(rank=128, count=10_000)]
    )

    assert plan.adapter_slots == plan.groups[0].resident_alone == SLOTS
    assert plan.groups[0].bytes_each == red.size_bytes  # fp32 in the package and on this server
    assert plan.groups[0].fits
    assert plan.groups[0].step_bytes_share > 0
    assert not plan.all_resident
    assert plan.resident_together == SLOTS
    assert client.server_info().load.adapter_slots_used <= SLOTS

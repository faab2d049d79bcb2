"""Adapters registered from s3:// and gs://, of real stores of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from loraplex_client import (
    InvalidRequestError,
    LoraplexApiError,
    LoraplexClient,
    NotFoundError,
    PreconditionError,
)
from tests.integration.live_server import LiveServer, running_server
from tests.support.object_stores import (
    BUCKET,
    GcsStore,
    S3Store,
    gcs_store,
    put_folder,
    s3_store,
    server_environment,
)

SCHEMES = ("s3", "gs")
MAX_BYTES = 400_000
PROMPT = [5, 6, 7, 8]

pytestmark = pytest.mark.slow


@dataclass
class Stores:
    """A server that may read below team-a/ of one bucket in each store, and what ends the stores."""

    server: LiveServer
    client: LoraplexClient
    s3: S3Store
    gcs: GcsStore
    processes: ExitStack

    def secrets(self) -> tuple[str, ...]:
        return (self.s3.secret, self.s3.key_id)


@pytest.fixture(scope="module")
def stores(tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with ExitStack() as processes, ExitStack() as stack:
        s3, gcs = processes.enter_context(s3_store()), processes.enter_context(gcs_store())
        for store in (s3, gcs):
            put_folder(store, "team-a/red", packages / "red")
            put_folder(store, "team-b/red", packages / "red")
            store.put("team-a/large/adapter_config.json", b"{}")
            store.put("team-a/large/adapter_model.safetensors", bytes(20 * MAX_BYTES))
            store.put("team-a/half/adapter_config.json", b"{}")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in server_environment(s3, gcs).items():
            patch.setitem(os.environ, name, value)
        settings = {
            "adapter_url_prefixes": (f"s3://{BUCKET}/team-a", f"gs://{BUCKET}/team-a/"),
            "max_adapter_bytes": MAX_BYTES,
            "package_url": f"s3://{BUCKET}/home",
        }
        folder = tmp_path_factory.mktemp("stores-server")
        server = stack.enter_context(running_server(tiny_base, folder, **settings))
        client = stack.enter_context(server.client())
        client.adapters.upload("uploaded", packages / "red")
        yield Stores(server, client, s3, gcs, processes)


def refused(stores: Stores, url: str, kind: type[LoraplexApiError] = PreconditionError) -> LoraplexApiError:
    """The refusal of a registration, after which nothing of it is left and nothing secret was said."""
    with pytest.raises(kind) as caught:
        stores.client.adapters.create("refused", url=url)
    with pytest.raises(NotFoundError):
        stores.client.adapters.get("refused")
    assert not any(stores.server.data_dir.glob("uploads/*"))
    said = f"{caught.value} {caught.value.__dict__} {stores.server.log()}"
    assert not any(secret in said for secret in stores.secrets())
    return caught.value


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_of_a_store_answers_as_the_same_one_uploaded(stores: Stores, scheme: str) -> None:
    client, url = stores.client, f"{scheme}://{BUCKET}/team-a/red"

    registered = client.adapters.create(f"from-{scheme}", url=url)

    uploaded = client.adapters.get("uploaded")
    answers = [
        client.generate(token_ids=PROMPT, adapter=name, temperature=0.0, max_tokens=8)
        for name in (f"from-{scheme}", "uploaded", "")
    ]
    assert registered.digest == uploaded.digest
    assert registered.version.source == url
    assert answers[0].text == answers[1].text != answers[2].text


def test_a_bucket_is_a_home_for_packages_that_servers_share(stores: Stores, packages: Path) -> None:
    digest = stores.client.adapters.get("uploaded").digest

    config = stores.s3.get(f"home/{digest}/adapter_config.json")

    assert config == (packages / "red" / "adapter_config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_package_over_the_budget_is_cut_off_and_nothing_of_it_stays(stores: Stores, scheme: str) -> None:
    error = refused(stores, f"{scheme}://{BUCKET}/team-a/large", InvalidRequestError)

    assert error.reason == "ADAPTER_INVALID"
    assert f"more than {MAX_BYTES} bytes" in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "missing"), [("nothing", "adapter_config.json"), ("half", "adapter_model.safetensors")]
)
def test_what_is_not_in_the_store_is_named(stores: Stores, scheme: str, name: str, missing: str) -> None:
    error = refused(stores, f"{scheme}://{BUCKET}/team-a/{name}")

    assert error.reason == "SOURCE_UNAVAILABLE"
    assert f"the source has no {missing}; check the URL" in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "path",
    [
        f"{BUCKET}/team-b/red",
        f"{BUCKET}/team-a/../team-b/red",
        f"{BUCKET}/team-ab",
        f"{BUCKET}2/team-a/red",
        f"someone:password@{BUCKET}/team-a/red",
        f"{BUCKET}/team-a/red?versionId=password",
    ],
)
def test_a_url_outside_the_allowed_prefixes_is_an_invalid_request(
    stores: Stores, scheme: str, path: str
) -> None:
    error = refused(stores, f"{scheme}://{path}", InvalidRequestError)

    assert error.reason == "INVALID_REQUEST"
    assert "url: must " in str(error)
    assert "password" not in f"{error} {stores.server.log()}"


def test_credentials_that_may_not_read_are_told_as_such(stores: Stores) -> None:
    stores.s3.let_read(False)
    try:
        error = refused(stores, f"s3://{BUCKET}/team-a/red")
    finally:
        stores.s3.let_read(True)

    assert error.reason == "SOURCE_UNAVAILABLE"
    assert "does not let this server read adapter_config.json" in str(error)
    assert "credentials for s3" in str(error)


def test_a_store_that_is_down_is_told_as_such_and_its_adapters_go_on_answering(stores: Stores) -> None:
    """Last here: it ends the stores."""
    stores.client.adapters.create("kept", url=f"gs://{BUCKET}/team-a/red")
    stores.processes.close()

    error = refused(stores, f"s3://{BUCKET}/team-a/red")
    assert error.reason == "SOURCE_UNAVAILABLE"
    assert "cannot be reached" in str(error)
    assert "the server's endpoint for s3" in str(error)
    assert stores.client.generate(token_ids=PROMPT, adapter="kept", max_tokens=2).usage.completion_tokens == 2

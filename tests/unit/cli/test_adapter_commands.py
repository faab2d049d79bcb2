"""`loraplex adapters …` against a scripted server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from typer.testing import CliRunner, Result

from loraplex.v1 import adapter_pb2
from loraplex_adapters import package as package_of_the_server
from loraplex_adapters.errors import AdapterInvalidError
from loraplex_cli.commands.adapters import local_package
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.main import app
from tests.unit.client.faults import Fault, error_info
from tests.unit.client.scripted_adapters import CANARY_DIGEST, STABLE_DIGEST, event
from tests.unit.client.scripted_server import ScriptedServer, running

CANARY = CANARY_DIGEST[:12]
PACKAGE = "PACKAGE"
"""Stands for a folder that is made by the test."""


def _shown(value: object) -> str:
    """A test's id, the same in every process: sets have no order."""
    return str(sorted(value) if isinstance(value, set) else value)[:40]


COMMANDS: list[tuple[str, tuple[str, ...], set[str]]] = [
    ("register", ("shop", PACKAGE), {"adapter", "version", "stored"}),
    ("register", ("shop", "s3://bucket/shop"), {"adapter", "version", "stored"}),
    ("register", ("shop", "shop", "--on-server"), {"adapter", "version", "stored"}),
    ("verify", (PACKAGE,), {"ok", "version"}),
    ("list", (), {"adapters"}),
    ("show", ("shop",), {"adapter"}),
    ("show", ("shop@canary",), {"adapter", "version"}),
    ("promote", ("shop", CANARY), {"adapter"}),
    ("rollback", ("shop",), {"adapter"}),
    ("unalias", ("shop", "canary"), {"adapter"}),
    ("split", ("shop", "stable=90", "canary=10"), {"adapter"}),
    ("split", ("shop", "--end"), {"adapter"}),
    ("shadow", ("shop", "canary", "--percent", "5"), {"adapter"}),
    ("shadow", ("shop", "--end"), {"adapter"}),
    ("label", ("shop", "team=search"), {"adapter"}),
    ("label", ("shop", "--clear"), {"adapter"}),
    ("pin", ("shop",), {"adapter"}),
    ("unpin", ("shop",), {"adapter"}),
    ("warm", ("shop", "shop@canary"), {"warmed"}),
    ("deprecate", ("shop", CANARY), {"adapter"}),
    ("delete", ("shop",), {"deleted"}),
    ("delete", (f"shop@{CANARY}",), {"deleted"}),
    ("plan", ("--ranks", "16x100,64x5"), {"plan"}),
    ("watch", (), {"event", "resume_token"}),
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as script:
        script.adapters.num_listed = 1
        script.adapters.events = [event(1)]
        yield script


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w" * 1000)
    return tmp_path


@pytest.fixture
def run(server: ScriptedServer, package: Path) -> Any:
    def invoke(*arguments: str) -> Result:
        words = [str(package) if word == PACKAGE else word for word in arguments]
        return CliRunner().invoke(app, ["adapters", *words], env={"LORAPLEX_SERVER": server.target})

    return invoke


def document(result: Result) -> Any:
    """Standard output must be one JSON document on one line."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize(
    ("command", "arguments", "keys"),
    COMMANDS,
    ids=_shown,
)
def test_a_command_prints_one_document_or_text(
    run: Any, command: str, arguments: tuple[str, ...], keys: set[str]
) -> None:
    as_json, as_text = run(command, *arguments, "--json"), run(command, *arguments)

    assert (as_json.exit_code, as_text.exit_code) == (ExitCode.OK, ExitCode.OK), as_text.output
    assert set(document(as_json)) == keys
    assert as_text.stdout.strip()


@pytest.mark.parametrize(("command", "arguments", "keys"), COMMANDS, ids=_shown)
def test_a_refusal_ends_with_its_exit_code_and_the_servers_reason(
    run: Any, server: ScriptedServer, command: str, arguments: tuple[str, ...], keys: set[str]
) -> None:
    server.faults = [Fault(grpc.StatusCode.FAILED_PRECONDITION, "not so", (error_info("SOME_REASON"),))]

    result = run(command, *arguments, "--json")

    assert result.exit_code == (ExitCode.BAD_INPUT if command == "verify" else ExitCode.REFUSED)
    error = document(result)["error"]
    assert (error["reason"], error["status"]) == ("SOME_REASON", "FAILED_PRECONDITION")
    assert "not so" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("register", "shop", PACKAGE, "--add-version", "--promote"),
        ("register", "shop", PACKAGE, "--label", "team"),
        ("register", "shop", "s3://bucket/shop", "--on-server"),
        ("register", "shop", PACKAGE, "--expect-digest", "abcd"),
        ("register", "shop", PACKAGE, "--expect-digest", ""),
        ("verify", PACKAGE, "--expect-digest", "g" * 64),
        ("label", "shop"),
        ("label", "shop", "team=search", "--clear"),
        ("split", "shop"),
        ("split", "shop", "stable=1", "--end"),
        ("split", "shop", "stable"),
        ("split", "shop", "stable=none"),
        ("split", "shop", "stable=0"),
        ("split", "shop", "stable=1", "stable=2"),
        ("shadow", "shop"),
        ("shadow", "shop", "canary", "--end"),
        ("plan",),
        ("plan", "--ranks", "16"),
        ("plan", "--ranks", "16xmany"),
        ("plan", "--adapter", "16x3:"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_not_sent(
    run: Any, server: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert document(result)["error"]["reason"] == "BAD_USAGE"
    assert server.num_calls == 0


def test_a_share_without_a_weight_is_told_as_one(run: Any) -> None:
    assert "'stable' must be TARGET=WEIGHT" in run("split", "finance", "stable").stderr


PICKLES = ("adapter_model.bin", "weights.PT", "a.pth", "a.ckpt", "a.pkl", "optimizer2.pt")
LEFTOVERS = (
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
)


@pytest.mark.parametrize("command", [("register", "shop"), ("verify",)], ids=" ".join)
@pytest.mark.parametrize("name", PICKLES)
def test_a_folder_with_a_pickle_is_not_sent(
    run: Any, server: ScriptedServer, package: Path, command: tuple[str, ...], name: str
) -> None:
    (package / name).touch()

    result = run(*command, PACKAGE, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    error = document(result)["error"]
    assert error["reason"] == "UNSUPPORTED_FORMAT"
    assert f"'{name}' is a pickle file" in error["message"]
    assert server.num_calls == 0


def test_a_folder_that_has_only_a_pickle_says_how_to_save_it(run: Any, package: Path) -> None:
    (package / "adapter_model.safetensors").rename(package / "adapter_model.bin")

    told = run("verify", PACKAGE).stderr

    assert "pickles are refused; save the adapter as adapter_model.safetensors" in told


def test_what_a_trainer_leaves_beside_an_adapter_is_no_pickle_of_it(run: Any, package: Path) -> None:
    for name in LEFTOVERS:
        (package / name).touch()

    assert run("verify", PACKAGE).exit_code == ExitCode.OK


@pytest.mark.parametrize("name", [*PICKLES, *LEFTOVERS, "README.md"])
def test_a_file_is_a_pickle_here_where_it_is_one_to_the_server(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()

    def is_refused(refuse: Any) -> bool:
        try:
            refuse(tmp_path)
        except (CommandError, AdapterInvalidError):
            return True
        return False

    assert is_refused(local_package.refuse_pickles) == is_refused(package_of_the_server.refuse_pickles)


def test_register_sends_all_that_it_is_told(run: Any, server: ScriptedServer, package: Path) -> None:
    flags = ["--promote", "--alias", "canary", "--label", "team=search", "--label", "tier=a=b"]
    flags += ["--dry-run", "--expect-digest", "sha256:" + "D" * 64, "--request-id", "once"]

    result = run("register", "finance/faq", PACKAGE, *flags, "--json")

    assert document(result)["stored"] is False
    ((header, *chunks),) = server.adapters.uploads
    assert header.header.registration == adapter_pb2.Registration(
        name="finance/faq",
        on_existing=adapter_pb2.EXISTING_ADAPTER_PROMOTE,
        alias="canary",
        labels={"team": "search", "tier": "a=b"},
        validate_only=True,
        expected_digest="d" * 64,
        request_id="once",
    )
    assert [chunk.chunk.file_name for chunk in chunks] == ["adapter_config.json", "adapter_model.safetensors"]


def test_register_says_what_was_proved(run: Any) -> None:
    text = run("register", "shop", PACKAGE).stdout

    for told in (STABLE_DIGEST, "8 served: k_proj, q_proj", "3.0 MiB", "c" * 64, "d" * 64):
        assert told in text
    assert "stable" in text.partition("aliases")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("s3://bucket/shop",), "url", "s3://bucket/shop"),
        (("/srv/shop", "--on-server"), "path", "/srv/shop"),
    ],
)
def test_what_the_server_reads_itself_is_not_sent(
    run: Any, server: ScriptedServer, arguments: tuple[str, ...], field: str, value: str
) -> None:
    run("register", "shop", *arguments, "--add-version")

    request = server.adapters.request(adapter_pb2.CreateAdapterRequest)
    assert (request.WhichOneof("source"), getattr(request, field)) == (field, value)
    assert request.registration.on_existing == adapter_pb2.EXISTING_ADAPTER_ADD_VERSION
    assert server.adapters.uploads == []


def test_verify_stores_nothing_and_says_pass(run: Any, server: ScriptedServer) -> None:
    result = run("verify", PACKAGE)

    assert result.stdout.startswith("pass\n")
    ((header, *_),) = server.adapters.uploads
    assert header.header.registration.validate_only


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_package_that_verify_refuses_is_bad_input(
    run: Any, server: ScriptedServer, status: grpc.StatusCode
) -> None:
    request_info = error_details_pb2.RequestInfo(request_id="q")
    server.faults = [Fault(status, "NaN in q_proj", (error_info("NON_FINITE_WEIGHTS"), request_info))]

    result = run("verify", PACKAGE, "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    error = document(result)["error"]
    assert (error["reason"], error["message"], error["request_id"]) == (
        "NON_FINITE_WEIGHTS",
        "NaN in q_proj",
        "q",
    )


def test_a_server_that_cannot_answer_now_is_no_verdict_on_the_package(
    run: Any, server: ScriptedServer
) -> None:
    server.faults = [Fault(grpc.StatusCode.ABORTED, details=(error_info("UPLOAD_IN_USE"),))]

    assert run("verify", PACKAGE).exit_code == ExitCode.REFUSED


def test_list_asks_for_tenant_and_filter_and_shows_a_line_each(run: Any, server: ScriptedServer) -> None:
    header, line = run("list", "--tenant", "finance", "--filter", "pinned = true").stdout.splitlines()

    request = server.adapters.request(adapter_pb2.ListAdaptersRequest)
    assert (request.parent, request.filter) == ("tenants/finance", "pinned = true")
    assert header.split() == ["name", "stable", "versions", "aliases", "and", "traffic", "tier", "pinned"]
    assert line.split() == ["a0", STABLE_DIGEST[:12], "2", "stable=90", "canary=10", "slot", "yes"]


def test_an_adapter_is_shown_with_the_times_of_each_version(run: Any) -> None:
    text = run("show", "shop").stdout

    canary, stable = text.splitlines()[-2:]
    assert canary.split() == [CANARY, "ready", "canary", "16", "3.0", "MiB", "disk", "-", "-", "-"]
    assert "slot  0.250 s  0.125 s  2023-11-14T22:13:20+00:00" in stable
    assert "7 compared, 6 equal, 1 dropped" in text


def test_an_adapter_as_json_has_its_short_name_and_iso_times(run: Any) -> None:
    shown = document(run("show", f"shop@{CANARY}", "--json"))

    assert (shown["adapter"]["name"], shown["adapter"]["resource_name"]) == (
        "shop",
        "tenants/default/adapters/shop",
    )
    assert shown["adapter"]["create_time"] == "2023-11-14T22:13:20.500000+00:00"
    assert shown["version"]["digest"] == CANARY_DIGEST
    assert shown["version"]["residency"]["tier"] == "disk"
    assert shown["version"]["is_resident"] is False


def test_a_version_that_is_not_there_is_refused(run: Any) -> None:
    result = run("show", "shop@nobody", "--json")

    assert result.exit_code == ExitCode.REFUSED
    assert document(result)["error"]["reason"] == "ADAPTER_NOT_FOUND"


def test_whoever_names_what_is_not_there_reads_in_text_how_to_find_it(
    run: Any, server: ScriptedServer
) -> None:
    server.faults = [Fault(grpc.StatusCode.NOT_FOUND, "no 'shop'", (error_info("ADAPTER_NOT_FOUND"),))] * 2

    as_text, as_json = run("promote", "shop", CANARY), run("promote", "shop", CANARY, "--json")

    assert as_text.exit_code == as_json.exit_code == ExitCode.REFUSED
    first, hint = as_text.stderr.splitlines()
    assert "no 'shop'" in first
    assert "loraplex adapters list" in hint
    assert "loraplex adapters list" not in as_json.output


def test_labels_go_only_where_that_is_asked_for(run: Any, server: ScriptedServer) -> None:
    run("label", "shop", "--clear")

    assert server.adapters.request(adapter_pb2.UpdateAdapterRequest).labels == {}


def test_promote_and_rollback_take_an_alias(run: Any, server: ScriptedServer) -> None:
    assert run("promote", "shop", CANARY).stdout == f"shop@stable is {STABLE_DIGEST[:12]}\n"
    run("rollback", "shop", "--alias", "canary")

    assert server.adapters.request(adapter_pb2.PromoteVersionRequest).alias == "stable"
    assert server.adapters.request(adapter_pb2.RollbackAliasRequest).alias == "canary"


def test_split_sends_the_weights_and_ends(run: Any, server: ScriptedServer) -> None:
    run("split", "shop", "stable=90", "canary=10")
    run("split", "shop", "--end")

    shares = [
        {share.target: share.weight for share in request.traffic}
        for request in server.adapters.requests
        if isinstance(request, adapter_pb2.SplitTrafficRequest)
    ]
    assert shares == [{"stable": 90, "canary": 10}, {}]


def test_delete_with_a_digest_deletes_that_version_alone(run: Any, server: ScriptedServer) -> None:
    assert document(run("delete", f"shop@{CANARY}", "--json")) == {"deleted": f"shop@{CANARY}"}

    request = server.adapters.request(adapter_pb2.DeleteVersionRequest)
    assert (request.name, request.version) == ("shop", CANARY)


def test_plan_takes_both_ways_of_naming_groups(run: Any, server: ScriptedServer) -> None:
    result = run("plan", "--ranks", "16x100,64x5", "--adapter", "8x2:q_proj,v_proj", "--json")

    (request,) = server.adapters.requests
    assert [(group.rank, group.count, list(group.target_modules)) for group in request.groups] == [  # type: ignore[attr-defined]
        (16, 100, []),
        (64, 5, []),
        (8, 2, ["q_proj", "v_proj"]),
    ]
    groups = document(result)["plan"]["groups"]
    assert (groups[1]["rank"], groups[1]["count"], groups[1]["bytes_each"]) == (64, 5, 2**20)


def test_watch_prints_a_line_per_event_and_the_token_to_go_on(run: Any, server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 4)]

    result = run("watch", "tenants/default", "--from", "1", "--json")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["event"]["name"], line["resume_token"]) for line in lines] == [("a2", "2"), ("a3", "3")]
    assert lines[0]["event"]["kind"] == "promoted"
    assert "--from 3" in result.stderr


def test_watch_gives_up_where_no_server_is() -> None:
    flags = ["--server", "127.0.0.1:1", "--timeout", "0.2", "--json"]

    result = CliRunner().invoke(app, ["adapters", "watch", *flags])

    assert result.exit_code == ExitCode.UNREACHABLE


def test_an_interrupted_watch_has_printed_what_it_saw(server: ScriptedServer) -> None:
    server.adapters.watch_stays_open = True
    command = [sys.executable, "-m", "loraplex_cli", "adapters", "watch", "--from", "0", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LORAPLEX_SERVER": server.target},
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, told = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == ExitCode.INTERRUPTED
    assert (first["resume_token"], rest) == ("1", "")
    assert told == "go on with --from 1\n"


def test_a_folder_that_is_not_there_is_called_so(server: ScriptedServer, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    result = CliRunner().invoke(app, ["adapters", "verify", str(missing), "--server", server.target])

    assert result.exit_code == ExitCode.BAD_INPUT
    assert f"no folder '{missing}'" in result.stderr


def test_a_package_to_register_that_is_not_there_is_named_with_what_makes_one(tmp_path: Path) -> None:
    missing = tmp_path / "package"

    result = CliRunner().invoke(app, ["train", "register", str(missing), "shop"])

    assert result.exit_code == ExitCode.BAD_INPUT
    assert f"no package in '{missing}'; `loraplex train package RUN_FOLDER`" in result.stderr


def test_a_name_in_use_is_told_with_the_options_that_go_on(server: ScriptedServer) -> None:
    server.faults = [Fault(grpc.StatusCode.ALREADY_EXISTS, "other weights", (error_info("ADAPTER_EXISTS"),))]

    result = CliRunner().invoke(
        app, ["adapters", "register", "shop", "s3://bucket/shop", "--server", server.target]
    )

    assert result.exit_code == ExitCode.REFUSED
    assert "--add-version" in result.stderr
    assert "--promote" in result.stderr


def test_a_dry_run_does_not_look_like_a_registration(server: ScriptedServer) -> None:
    result = CliRunner().invoke(
        app, ["adapters", "register", "shop", "s3://bucket/shop", "--dry-run", "--server", server.target]
    )

    assert result.exit_code == ExitCode.OK
    first, *others = result.stdout.splitlines()
    assert first == "dry run: 'shop' would be registered, and nothing was stored"
    assert not any(line.startswith("registered") for line in others)


def test_a_list_of_none_says_whose_there_are_none_of(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraplex_client.adapter_calls.AdapterCalls.list", lambda *_, **__: iter(()))

    result = CliRunner().invoke(app, ["adapters", "list", "--tenant", "nosuch", "--server", server.target])

    assert result.exit_code == ExitCode.OK
    assert result.stderr == "there are no adapters of tenant 'nosuch'\n"

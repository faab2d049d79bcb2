"""Training jobs on a real server, with a scripted trainer in the place of the real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from loraplex_client import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    LoraplexClient,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    TrainingEventKind,
    TrainingJob,
    TrainingJobState,
    TrainingVerdict,
)
from tests.integration.live_server import LiveServer, eventually, running_server
from tests.integration.streams import ENDLESS, GREEDY, PROMPT
from tests.support.scripted_trainer import install

StartTraining = Callable[..., LiveServer]


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of servers whose trainer is scripted."""
    return str(install(tmp_path_factory.mktemp("scripted-trainer")))


@pytest.fixture(scope="module")
def shared(
    tiny_base: Path, packages: Path, scripted: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server that trains; its jobs are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", scripted)
        folder = tmp_path_factory.mktemp("training-server")
        settings = {"training": True, "training_roots": packages, "training_max_upload_bytes": 1000}
        with running_server(tiny_base, folder, **settings) as live:
            yield live


@pytest.fixture
def client(shared: LiveServer) -> Iterator[LoraplexClient]:
    with shared.client() as made:
        yield made


@pytest.fixture
def start(
    tiny_base: Path, scripted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartTraining]:
    """Start a server that the test may break; the next one has its data."""
    monkeypatch.setenv("PYTHONPATH", scripted)
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(
            running_server(tiny_base, tmp_path / "server", training=True, **settings)
        )


def recipe(packages: Path, name: str = "faq", steps: int = 4, adapter: str = "red", **script: Any) -> str:
    return json.dumps(
        {"name": name, "steps": steps, "script": {"package": str(packages / adapter), **script}}
    )


def await_end(client: LoraplexClient, job: TrainingJob) -> TrainingJob:
    with client.training.events(job.name) as events:
        for _ in events:
            pass
    return client.training.get(job.name)


def await_step(client: LoraplexClient, job: TrainingJob, step: int) -> None:
    with client.training.events(job.name) as events:
        next(event for event in events if event.kind is TrainingEventKind.STEP and event.step >= step)


def test_a_job_that_passes_the_gate_answers_as_a_candidate_without_a_restart(
    client: LoraplexClient, shared: LiveServer, packages: Path
) -> None:
    job = client.training.create(recipe(packages, "life"), "team", files={"data/a.csv": b"x"}, alias="new")
    assert (job.state, job.adapter) == (TrainingJobState.QUEUED, "tenants/team/adapters/life")
    with client.training.events(job.name) as stream:
        events = list(stream)

    done = client.training.get(job.name)
    assert done.state is TrainingJobState.SUCCEEDED
    assert done.verdict is TrainingVerdict.PASS
    assert done.failure is None
    assert done.attempts == 1
    assert done.start_time is not None
    assert done.end_time is not None
    assert done.create_time <= done.start_time <= done.end_time
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state for event in events if event.kind is TrainingEventKind.STATE]
    assert states == [TrainingJobState.QUEUED, TrainingJobState.RUNNING, TrainingJobState.SUCCEEDED]
    steps = [event for event in events if event.kind is TrainingEventKind.STEP]
    assert steps[-1].step == steps[-1].num_steps == 4
    assert steps[-1].values["loss"] == 0.25
    assert any(event.values == {"domain_gain": 50.0} for event in events)
    adapter = client.adapters.get("team/life")
    assert adapter.aliases["new"] == done.digest
    assert adapter.version("new").source == f"training job {job.name.rpartition('/')[2]}"
    answer = client.generate(PROMPT, adapter="team/life@new", **GREEDY)
    assert answer.adapter_digest == done.digest
    run = shared.data_dir / "training/jobs" / job.name.rpartition("/")[2] / "run"
    assert json.loads((run / "seen.json").read_text()) == {"data/a.csv": "x"}
    assert shared.metric("loraplex_training_jobs_total", state="succeeded") >= 1
    assert shared.metric("loraplex_training_steps_total") >= 4


def test_the_gate_sees_other_adapters_of_the_server(
    client: LoraplexClient, shared: LiveServer, packages: Path
) -> None:
    client.adapters.upload("neighbours/green", packages / "green")

    job = client.training.create(recipe(packages, "seeing", verdict="fail"))

    await_end(client, job)
    run = shared.data_dir / "training/jobs" / job.name.rpartition("/")[2] / "run"
    others = json.loads((run / "others.json").read_text())
    assert ["adapter_config.json", "adapter_model.safetensors"] in others


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_a_job_that_the_gate_refuses_keeps_its_package_and_says_why(
    client: LoraplexClient, shared: LiveServer, packages: Path, verdict: str
) -> None:
    job = client.training.create(recipe(packages, f"refused-{verdict}", verdict=verdict))

    done = await_end(client, job)

    assert done.state is TrainingJobState.FAILED
    assert done.verdict == verdict
    assert done.failure is not None
    assert "domain gain" in done.failure.message
    assert not done.failure.resumable
    package = shared.data_dir / "training/jobs" / job.name.rpartition("/")[2] / "run/package"
    assert (package / "adapter_model.safetensors").exists()
    with pytest.raises(NotFoundError):
        client.adapters.get(f"refused-{verdict}")
    with pytest.raises(PreconditionError) as caught:
        client.training.resume(job.name)
    assert caught.value.reason == "TRAINING_JOB_STATE"


def test_a_package_that_admission_refuses_fails_the_job_and_not_the_server(
    client: LoraplexClient, packages: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    script = json.dumps({"name": "bad", "script": {"package": str(tmp_path / "empty")}})

    done = await_end(client, client.training.create(script))

    assert done.failure is not None
    assert done.failure.reason == "ADAPTER_INVALID"
    assert str(tmp_path) not in done.failure.message


def test_a_recipe_that_cannot_be_followed_is_refused_at_once_with_every_wrong_field(
    client: LoraplexClient, packages: Path
) -> None:
    wrong = {"train.epochs.max": "must be at least 1", "lora.rank": "must be within 1 to 256"}

    with pytest.raises(InvalidRequestError) as caught:
        client.training.create(recipe(packages, violations=wrong), "strict")

    assert {entry.field: entry.description for entry in caught.value.violations} == {
        f"recipe.{field}": description for field, description in wrong.items()
    }
    assert list(client.training.list("tenants/strict")) == []


def test_what_the_trainer_lacks_is_told(client: LoraplexClient, packages: Path) -> None:
    with pytest.raises(PreconditionError, match="'trl'") as caught:
        client.training.create(recipe(packages, library="trl"))

    assert caught.value.reason == "TRAINER_MISSING"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../x": b""}, "INVALID_REQUEST"),
        ({"/etc/x": b""}, "INVALID_REQUEST"),
        ({"a/.b": b""}, "INVALID_REQUEST"),
        ({"a": b"", "a/b": b""}, "INVALID_REQUEST"),
        ({"a\\b": b""}, "INVALID_REQUEST"),
        ({"a": b"x" * 1001}, "UPLOAD_TOO_LARGE"),
    ],
    ids=["parent", "absolute", "hidden", "file-and-folder", "backslash", "too-large"],
)
def test_files_that_may_not_be_sent_are_refused(
    client: LoraplexClient, packages: Path, files: dict[str, bytes], reason: str
) -> None:
    with pytest.raises((InvalidRequestError, OverloadedError)) as caught:
        client.training.create(recipe(packages), files=files)

    assert caught.value.reason == reason


def test_a_folder_of_data_must_lie_under_a_root(
    client: LoraplexClient, packages: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.training.create(recipe(packages), data_folder=tmp_path)
    assert caught.value.violations[0].field == "data_folder"
    with pytest.raises(InvalidRequestError):
        client.training.create(recipe(packages), data_folder=packages / "red", files={"a": b""})

    job = client.training.create(recipe(packages), data_folder=packages / "red", validate_only=True)

    assert job.name == ""
    assert job.data_folder == str((packages / "red").resolve())


def test_another_tenant_cannot_see_the_job(client: LoraplexClient, packages: Path) -> None:
    job = client.training.create(recipe(packages, "mine"), "mine")
    foreign = job.name.replace("tenants/mine/", "tenants/yours/")

    assert [one.name for one in client.training.list("tenants/mine")] == [job.name]
    assert list(client.training.list("tenants/yours")) == []
    for call in (client.training.get, client.training.cancel, client.training.resume):
        with pytest.raises(NotFoundError) as caught:
            call(foreign)
        assert caught.value.reason == "TRAINING_JOB_NOT_FOUND"
    with pytest.raises(NotFoundError):
        next(client.training.events(foreign))
    await_end(client, job)


def test_the_same_request_makes_one_job(client: LoraplexClient, packages: Path) -> None:
    first = client.training.create(recipe(packages, "once"), "once", request_id="one")

    again = client.training.create(recipe(packages, "once"), "once", request_id="one")

    assert again.name == first.name
    with pytest.raises(AlreadyExistsError) as caught:
        client.training.create(recipe(packages, "twice"), "once", request_id="one")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    other = client.training.create(recipe(packages, "once"), "elsewhere", request_id="one")
    assert other.name != first.name
    await_end(client, first)
    await_end(client, other)


def test_jobs_are_listed_newest_first_by_pages(client: LoraplexClient, packages: Path) -> None:
    made = [client.training.create(recipe(packages, f"p{i}"), "pages").name for i in range(3)]

    listed = list(client.training.list("tenants/pages", page_size=2))

    assert [job.name for job in listed] == made[::-1]
    assert {job.recipe for job in listed} == {""}
    with pytest.raises(InvalidRequestError):
        list(client.training.list(page_size=1001))
    for name in made:
        await_end(client, client.training.get(name))


def test_jobs_of_one_device_run_one_after_another_and_a_waiting_one_is_cancelled_at_once(
    client: LoraplexClient, packages: Path
) -> None:
    first = client.training.create(recipe(packages, "first", steps=1000, step_s=0.05), "queue")
    await_step(client, first, 1)
    second = client.training.create(recipe(packages, "second"), "queue")

    cancelled = client.training.cancel(second.name)

    assert cancelled.state is TrainingJobState.CANCELLED
    assert client.training.cancel(second.name).state is TrainingJobState.CANCELLED
    with pytest.raises(ConflictError):
        client.training.cancel(first.name, etag="999")
    assert client.training.cancel(first.name).state is TrainingJobState.RUNNING
    assert await_end(client, first).state is TrainingJobState.CANCELLED
    with pytest.raises(PreconditionError):
        client.training.resume(first.name)


def test_a_tenant_may_have_so_many_unfinished_jobs(client: LoraplexClient, packages: Path) -> None:
    busy = client.training.create(recipe(packages, "busy", steps=1000, step_s=0.05), "greedy")
    waiting = [client.training.create(recipe(packages, f"w{i}"), "greedy") for i in range(7)]

    with pytest.raises(OverloadedError) as caught:
        client.training.create(recipe(packages, "more"), "greedy")

    assert caught.value.reason == "QUOTA_EXCEEDED"
    for job in (*waiting, busy):
        client.training.cancel(job.name)
    await_end(client, busy)


def test_a_paused_job_goes_on_when_it_is_resumed(client: LoraplexClient, packages: Path) -> None:
    job = client.training.create(recipe(packages, "paused", outcome="paused"))
    assert await_end(client, job).state is TrainingJobState.PAUSED

    resumed = client.training.resume(job.name)

    assert resumed.state in (TrainingJobState.QUEUED, TrainingJobState.RUNNING)
    done = await_end(client, job)
    assert (done.state, done.attempts) == (TrainingJobState.SUCCEEDED, 2)
    with client.training.events(job.name) as events:
        assert "going on behind step 2" in " ".join(event.text for event in events)


def test_a_killed_job_can_be_resumed_and_goes_on_where_it_was(client: LoraplexClient, packages: Path) -> None:
    job = client.training.create(recipe(packages, "killed", die_at=3))
    died = await_end(client, job)
    assert died.state is TrainingJobState.FAILED
    assert died.failure is not None
    assert (died.failure.reason, died.failure.resumable) == ("JOB_KILLED", True)

    client.training.resume(job.name)

    assert await_end(client, job).state is TrainingJobState.SUCCEEDED
    with client.training.events(job.name) as stream:
        events = list(stream)
    assert "going on behind step 3" in " ".join(event.text for event in events)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_events_go_on_behind_the_last_one_seen(client: LoraplexClient, packages: Path) -> None:
    job = client.training.create(recipe(packages, "events"))
    with client.training.events(job.name) as stream:
        first = [next(stream) for _ in range(2)]
    await_end(client, job)
    with client.training.events(job.name) as stream:
        everything = list(stream)

    with client.training.events(job.name, 2) as stream:
        rest = list(stream)

    assert first + rest == everything
    with pytest.raises(InvalidRequestError):
        next(client.training.events(job.name, 10_000))


@pytest.mark.slow
def test_a_job_gives_way_while_the_queue_is_deep_and_not_for_ever(
    start: StartTraining, packages: Path
) -> None:
    server = start(max_running=1, training_max_waiting=0, training_max_pause_s=0.3)
    with server.client() as client, client.stream(PROMPT, **ENDLESS) as running:
        next(running)
        with client.stream(PROMPT, **ENDLESS):  # waits as long as the other one runs
            eventually(lambda: client.server_info().load.waiting == 1)
            job = client.training.create(recipe(packages, "yields", steps=6, step_s=0.1, verdict="fail"))

            done = await_end(client, job)

        assert done.verdict is TrainingVerdict.FAIL
        assert server.metric("loraplex_training_steps_total") == 6
        assert server.metric("loraplex_training_pause_seconds_total") > 0.9


@pytest.mark.slow
def test_a_job_over_its_budget_of_time_or_memory_is_ended(start: StartTraining, packages: Path) -> None:
    server = start(training_timeout_s=3, training_memory_bytes=2**28)
    with server.client() as client:
        slow = client.training.create(recipe(packages, "slow", steps=1000, step_s=0.1))
        large = client.training.create(recipe(packages, "large", steps=1000, step_s=0.1, eat_bytes=2**29))

        reasons = [await_end(client, job).failure for job in (slow, large)]

    assert [failure and failure.reason for failure in reasons] == ["JOB_OUT_OF_TIME", "JOB_OUT_OF_MEMORY"]
    assert all(failure and failure.resumable for failure in reasons)


@pytest.mark.slow
def test_a_restart_finds_every_job_again(start: StartTraining, packages: Path) -> None:
    server = start()
    with server.client() as client:
        finished = client.training.create(recipe(packages, "finished"))
        await_end(client, finished)
        failed = client.training.create(recipe(packages, "failed", verdict="fail"))
        await_end(client, failed)
        running = client.training.create(recipe(packages, "running", steps=3, stay_at=1))
        waiting = client.training.create(recipe(packages, "waiting"))
        await_step(client, running, 1)
    children = _trainers(server)
    assert len(children) == 1

    server.process.terminate()
    assert server.await_exit() == 0

    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    server = start()
    with server.client() as client:
        assert client.training.get(finished.name).state is TrainingJobState.SUCCEEDED
        assert client.training.get(failed.name).state is TrainingJobState.FAILED
        done = await_end(client, running)
        assert (done.state, done.attempts) == (TrainingJobState.SUCCEEDED, 2)
        assert await_end(client, waiting).state is TrainingJobState.SUCCEEDED
        with client.training.events(running.name) as events:
            told = [event.text for event in events if event.text.startswith("going on")]
        assert "behind step 0" in told[0]
        assert "behind step 0" not in told[1]


@pytest.mark.slow
def test_a_killed_server_loses_no_job_and_leaves_no_process(start: StartTraining, packages: Path) -> None:
    server = start()
    with server.client() as client:
        running = client.training.create(recipe(packages, "running", steps=3, stay_at=1))
        await_step(client, running, 1)
        with client.training.events(running.name) as events:
            seen = next(events).sequence
    children = _trainers(server)

    server.kill()

    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    server = start()
    with server.client() as client:
        with client.training.events(running.name, seen) as events:
            numbers = [event.sequence for event in events]
        assert numbers == list(range(seen + 1, seen + 1 + len(numbers)))
        done = client.training.get(running.name)
        assert (done.state, done.attempts) == (TrainingJobState.SUCCEEDED, 2)


def test_a_server_that_does_not_train_says_so(tight_server: LiveServer, packages: Path) -> None:
    with tight_server.client() as client, pytest.raises(PreconditionError) as caught:
        client.training.create(recipe(packages))

    assert caught.value.reason == "TRAINING_DISABLED"


def _trainers(server: LiveServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "loraplex_trainer" in " ".join(child.cmdline())]

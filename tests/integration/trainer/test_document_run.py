"""From a PDF and a web page to answers of the running server, without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loraplex_client import LoraplexClient, TrainingEventKind, TrainingJobState, TrainingVerdict
from tests.integration.live_server import LiveServer, environment, running_server
from tests.integration.tiny_base import save_tiny_base
from tests.integration.trainer import handbook
from tests.support.no_network import attempts, install

SYSTEM = "You are the tariff desk."


def answer(client: LoraplexClient, town: str, adapter: str | None) -> str:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"What is {town}?"}]
    completion = client.generate(messages=messages, adapter=adapter, temperature=0, max_tokens=48)  # type: ignore[arg-type]
    return completion.text


def kill_trainer(server: LiveServer) -> None:
    children = psutil.Process(server.process.pid).children()
    (trainer,) = (child for child in children if "loraplex_trainer" in " ".join(child.cmdline()))
    trainer.kill()


def test_what_shuts_off_the_network_lets_only_the_loopback_through(tmp_path: Path) -> None:
    path = install(tmp_path)
    script = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
for call in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("a.example", 80)):
    try:
        call()
    except OSError as error:
        assert "shut off" in str(error)
    else:
        raise SystemExit("reached it")
"""

    subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment() | {"PYTHONPATH": str(path)}, check=True
    )

    assert "192.0.2.1" in attempts(path)
    assert "a.example" in attempts(path)


@pytest.mark.slow
def test_documents_become_an_adapter_that_the_running_server_answers_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_base(tmp_path / "base")
    pdf = handbook.write_pdf(tmp_path / "tariffs.pdf", range(20))
    page = handbook.write_page(tmp_path / "tariffs.html", range(20, 40))
    files = {path.name: path.read_bytes() for path in (pdf, page)}
    network = install(tmp_path / "network")
    monkeypatch.setenv("PYTHONPATH", str(network))

    with (
        running_server(base, tmp_path / "server", training=True, training_threads=1) as server,
        server.client() as client,
    ):
        job = client.training.create(handbook.recipe(), "team", files=files)
        with client.training.events(job.name) as stream:
            next(event for event in stream if event.values.get("epoch", 0) >= 3)
            kill_trainer(server)
            for _ in stream:
                pass
        died = client.training.get(job.name)
        assert died.failure is not None
        assert (died.failure.reason, died.failure.resumable) == ("JOB_KILLED", True)
        client.training.resume(job.name)
        with client.training.events(job.name) as stream:
            events = list(stream)
        done = client.training.get(job.name)

        told = "\n".join(event.text for event in events)
        assert done.state is TrainingJobState.SUCCEEDED, told
        assert done.verdict is TrainingVerdict.PASS
        assert done.attempts == 2
        stages = [event.stage for event in events if event.kind is TrainingEventKind.STAGE]
        assert stages == ["data", "train", *("data", "train", "evaluate", "package", "gate", "register")]
        epochs = [event.values["epoch"] for event in events if "perplexity" in event.values]
        assert epochs[-1] == 10
        assert epochs.count(1) == 1, "it went on, and did not begin anew"
        # Grounded: every answer stands in a document. Cleaned: what is personal stands nowhere.
        job_folder = server.data_dir / "training/jobs" / job.name.rpartition("/")[2]
        rows = [json.loads(line) for line in (job_folder / "run/data/rows.jsonl").read_text().splitlines()]
        facts = {handbook.tariff(number) for number in range(40)}
        assert sum(row["completion"] in facts for row in rows) >= 35
        assert {row["source"] for row in rows} == set(files)
        for file in (job_folder / "run").rglob("*"):
            assert not file.is_file() or handbook.SECRET.encode() not in file.read_bytes(), file.name
        plan = json.loads((job_folder / "run/plan.json").read_text())
        assert plan["method"] == "qlora-nf4"
        # It answers at once, in the manner of the documents; the base does not.
        adapter = client.adapters.get("team/handbook")
        assert adapter.aliases["candidate"] == done.digest
        towns = handbook.TOWNS[:6]
        learned = [answer(client, town, "team/handbook@candidate") for town in towns]
        assert sum(text.endswith("homes.") for text in learned) >= 4, learned
        assert not any("homes" in answer(client, town, None) for town in towns)

    assert attempts(network) == ""

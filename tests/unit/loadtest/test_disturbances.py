"""What disturbances send, and what they say where they cannot."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
import yaml

from loraplex_loadtest.disturbances.engine_process import server_process
from loraplex_loadtest.disturbances.schedule import StartTraining
from loraplex_loadtest.disturbances.training import read_recipe
from loraplex_loadtest.disturbances.variants import WEIGHTS_FILE, write_variant
from loraplex_loadtest.errors import ScenarioInvalidError, TargetFeatureError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Ten weights of two bytes, as safetensors has them."""
    folder = tmp_path / "package"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [10], "data_offsets": [0, 20]}}).encode()
    (folder / "adapter_config.json").write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    return folder


def test_variants_differ_in_one_bit_and_from_each_other(package: Path, tmp_path: Path) -> None:
    first, second = (write_variant(package, tmp_path / f"v{index}", index) / WEIGHTS_FILE for index in (0, 7))
    original = (package / WEIGHTS_FILE).read_bytes()

    for variant in (first, second):
        changed = int.from_bytes(variant.read_bytes(), "little") ^ int.from_bytes(original, "little")
        assert changed.bit_count() == 1
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in (first, second)}) == 2


def test_a_package_has_only_as_many_variants_as_weights(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioInvalidError, match="too few weights for variant 10"):
        write_variant(package, tmp_path / "v", 10)


def test_a_training_job_carries_its_recipe_and_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "train.jsonl").write_bytes(b"{}\n")
    what = StartTraining(kind="train", at_s=0, recipe=tmp_path / "recipe.yaml", files=("train.jsonl",))

    assert read_recipe(what) == ("name: x\n", {"train.jsonl": b"{}\n"})
    with pytest.raises(ScenarioInvalidError, match="recipe"):
        read_recipe(what.model_copy(update={"files": ("eval.jsonl",)}))


def test_the_bundled_training_job_has_every_file_that_its_recipe_names() -> None:
    recipe, files = read_recipe(StartTraining(kind="train", at_s=0))

    assert [source["path"] for source in yaml.safe_load(recipe)["data"]["sources"]] == list(files)


def test_a_server_elsewhere_has_no_engine_to_kill() -> None:
    with pytest.raises(TargetFeatureError, match="port 1"):
        server_process("127.0.0.1:1")


def test_a_server_of_another_machine_is_never_looked_for_on_this_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(TargetFeatureError, match="another machine"):
            server_process(f"192.0.2.1:{port}")
        assert server_process(f"localhost:{port}").pid == os.getpid()

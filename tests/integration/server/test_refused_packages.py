"""Packages that must not be served, and paths that must not be read: refused by name, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex_client import InvalidRequestError, LoraplexApiError, LoraplexClient, NotFoundError
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer, eventually

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INVALID, MISMATCH = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION

Damage = Callable[[Path], None]


def with_config(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def with_tensors(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = dict(change(key, tensor) for key, tensor in load_file(folder / WEIGHTS).items())
        save_file(tensors, folder / WEIGHTS)

    return damage


def with_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def _widened(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return key, torch.cat([tensor, tensor], dim=1) if key.endswith("q_proj.lora_A.weight") else tensor


def _with_nan(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return key, tensor.fill_(float("nan")) if "layers.1.mlp.up_proj" in key else tensor


def _embedding(key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return key.replace("layers.0.self_attn.q_proj", "embed_tokens"), tensor


REFUSED: dict[str, tuple[Damage, grpc.StatusCode, str, str]] = {
    "DoRA": (with_config(use_dora=True), INVALID, "UNSUPPORTED_PEFT_FEATURE", "DoRA"),
    "trained head": (
        with_config(modules_to_save=["lm_head"]),
        INVALID,
        "UNSUPPORTED_PEFT_FEATURE",
        "modules_to_save",
    ),
    "bias": (with_config(bias="all"), INVALID, "UNSUPPORTED_PEFT_FEATURE", "bias"),
    "aLoRA": (with_config(alora_invocation_tokens=[1]), INVALID, "UNSUPPORTED_PEFT_FEATURE", "aLoRA"),
    "code": (with_config(auto_map={"AutoModel": "x.y"}), INVALID, "UNSUPPORTED_FORMAT", "auto_map"),
    "rank of 0": (with_config(r=0), INVALID, "ADAPTER_INVALID", r"\br\b"),
    "rank of others": (with_config(r=5), INVALID, "ADAPTER_INVALID", "rank"),
    "config no JSON": (with_bytes(CONFIG, lambda raw: raw[:-1]), INVALID, "ADAPTER_INVALID", CONFIG),
    "cut off": (with_bytes(WEIGHTS, lambda raw: raw[:-7]), INVALID, "ADAPTER_INVALID", WEIGHTS),
    "endless header": (
        with_bytes(WEIGHTS, lambda raw: b"\xff" * 8 + raw),
        INVALID,
        "ADAPTER_INVALID",
        WEIGHTS,
    ),
    "no header": (with_bytes(WEIGHTS, lambda raw: b""), INVALID, "ADAPTER_INVALID", WEIGHTS),
    "NaN": (with_tensors(_with_nan), INVALID, "NON_FINITE_WEIGHTS", "NaN"),
    "embedding": (with_tensors(_embedding), MISMATCH, "BASE_MISMATCH", "embed_tokens"),
    "more layers": (
        with_tensors(lambda key, tensor: (key.replace("layers.1", "layers.7"), tensor)),
        MISMATCH,
        "BASE_MISMATCH",
        r"layers\.7",
    ),
    "wider": (with_tensors(_widened), MISMATCH, "BASE_MISMATCH", "q_proj"),
}


@pytest.fixture
def copy_of_red(packages: Path, tmp_path: Path) -> Iterator[Path]:
    """A sound package that the test may damage, below the server's root."""
    folder = packages / f"damaged-{tmp_path.name}"
    shutil.copytree(packages / "red", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", REFUSED)
def test_a_package_that_cannot_be_served_exactly_is_refused_and_the_cause_is_named(
    server: LiveServer, client: LoraplexClient, copy_of_red: Path, what: str
) -> None:
    """Rows 7 to 11. vLLM #9280: what PEFT trains is refused when it is loaded, and nobody says why."""
    damage, code, reason, cause = REFUSED[what]
    damage(copy_of_red)
    stored = set(os.listdir(server.data_dir / "adapters"))

    for register in (client.adapters.create, client.adapters.upload):
        with pytest.raises(LoraplexApiError, match=cause) as caught:
            register("refused", copy_of_red)
        assert caught.value.code is code
        assert caught.value.reason == reason
        assert caught.value.request_id

    with pytest.raises(NotFoundError):
        client.adapters.get("refused")
    assert set(os.listdir(server.data_dir / "adapters")) == stored
    eventually(lambda: os.listdir(server.data_dir / "uploads") == [])


def test_a_folder_with_a_pickle_is_refused_though_a_sound_file_lies_beside_it(
    client: LoraplexClient, copy_of_red: Path
) -> None:
    """Row 7. TensorRT-LLM #13391: weights were unpickled from a path of the caller's choice."""
    torch.save({"x": torch.zeros(1)}, copy_of_red / "adapter_model.bin")

    with pytest.raises(InvalidRequestError, match=r"adapter_model\.bin") as caught:
        client.adapters.create("refused", copy_of_red)

    assert caught.value.reason == "UNSUPPORTED_FORMAT"


def test_a_rank_above_the_servers_limit_is_refused(
    tight_client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    """Row 10. vLLM #2847: told when it is registered, not when it is asked for."""
    folder = new_adapter("high-rank", r=17, target_modules=["q_proj"])

    with pytest.raises(InvalidRequestError, match="rank 17 is above the limit of 16") as caught:
        tight_client.adapters.upload("refused", folder)

    assert [violation.field for violation in caught.value.violations] == ["r"]


def _outside(folder: Path) -> str:
    return "/etc"


def _climbing(folder: Path) -> str:
    return f"{folder}/../../../../etc"


def _relative(folder: Path) -> str:
    return folder.name


def _a_file(folder: Path) -> str:
    return str(folder / CONFIG)


def _missing(folder: Path) -> str:
    return str(folder / "nothing-here")


def _linked_out(folder: Path) -> str:
    (folder / "link").symlink_to("/etc")
    return str(folder / "link")


def _loop(folder: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop" / "x")


def _nul(folder: Path) -> str:
    return f"{folder}/\0"


def _long_part(folder: Path) -> str:
    return f"{folder}/{'x' * 300}"


def _long_path(folder: Path) -> str:
    return f"{folder}/{'x/' * 5000}"


@pytest.mark.parametrize(
    "path_of",
    [
        _outside,
        _climbing,
        _relative,
        _a_file,
        _missing,
        _linked_out,
        _loop,
        _nul,
        _long_part,
        _long_path,
        lambda _: "",
        lambda _: "file:///etc",
    ],
)
def test_a_path_that_is_no_folder_below_the_roots_is_refused_and_not_repeated(
    client: LoraplexClient, copy_of_red: Path, path_of: Callable[[Path], str]
) -> None:
    """Row 6. vLLM #46287: absolute paths, '..' and links led out of the resolver's folder."""
    path = path_of(copy_of_red)

    with pytest.raises(InvalidRequestError) as caught:
        client.adapters.create("refused", path)

    assert [violation.field for violation in caught.value.violations] == ["path"]
    assert "etc" not in caught.value.message
    assert str(copy_of_red) not in caught.value.message


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(
    client: LoraplexClient, copy_of_red: Path, packages: Path, name: str
) -> None:
    """Row 6."""
    (copy_of_red / name).unlink()
    (copy_of_red / name).symlink_to(packages / "red" / name)
    with pytest.raises(InvalidRequestError, match=f"{name} is a link"):
        client.adapters.create("refused", copy_of_red)

    (copy_of_red / name).unlink()
    with pytest.raises(InvalidRequestError, match=f"has no {name}"):
        client.adapters.create("refused", copy_of_red)

    os.mkfifo(copy_of_red / name)
    with pytest.raises(InvalidRequestError, match=f"{name} is not a regular file"):
        client.adapters.create("refused", copy_of_red)

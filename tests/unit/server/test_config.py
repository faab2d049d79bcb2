"""Settings: which source wins, and messages that name the setting, where it came from and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from loraplex_server.config import ConfigError, ServerConfig, load_config
from loraplex_server.engine.config import EngineConfig


def write(folder: Path, text: str) -> Path:
    path = folder / "server.yaml"
    path.write_text(text)
    return path


def message_of(
    file: Path | None = None,
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, flags, environment or {})
    assert caught.value.reason == "INVALID_CONFIG"
    return str(caught.value)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\nmax_running: 11\nmax_waiting: 111\n")
    environment = {"LORAPLEX_PORT": "2", "LORAPLEX_MAX_RUNNING": "22"}

    config = load_config(file, {"port": 3}, environment)

    assert (config.port, config.max_running, config.max_waiting) == (3, 22, 111)
    assert config.max_output_tokens == ServerConfig.model_fields["max_output_tokens"].default


def test_a_flag_that_was_not_given_hides_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "port: 1"), {"port": None}, {}).port == 1


def test_the_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_PORT", "4242")
    assert load_config().port == 4242
    assert load_config(environment={}).port == 50051


def test_variables_of_others_are_left_alone() -> None:
    environment = {"PATH": "/bin", "PORT": "7", "LORAPLEX_SERVER": "example:1", "XLORAPLEX_PORT": "8"}
    assert load_config(environment=environment).port == 50051


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("file", {}),
        ("environment", {"environment": {"LORAPLEX_MAX_RUNING": "3"}}),
        ("flag", {"flags": {"max_runing": 3}}),
    ],
)
def test_an_unknown_setting_is_refused_with_its_source_and_the_likely_name(
    tmp_path: Path, source: str, arguments: dict[str, Any]
) -> None:
    file = write(tmp_path, "max_runing: 3") if source == "file" else None

    message = message_of(file, **arguments)

    assert "unknown setting 'max_runing'" in message
    assert f"({source}" in message
    assert "did you mean 'max_running'?" in message


def test_an_unknown_setting_like_no_other_points_to_the_schema() -> None:
    assert "see `loraplex config schema`" in message_of(flags={"zzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("port", "70000", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("port", "http", "valid integer"),
        ("metrics_port", "65536", "less than or equal to 65535"),
        ("max_waiting", "0", "greater than or equal to 1"),
        ("max_waiting", "100001", "less than or equal to 100000"),
        ("max_output_tokens", "0", "greater than or equal to 1"),
        ("default_deadline_s", "0", "greater than 0"),
        ("max_deadline_s", "-3", "greater than 0"),
        ("drain_grace_s", "-0.1", "greater than or equal to 0"),
        ("write_stall_timeout_s", "0", "greater than 0"),
        ("reflection", "perhaps", "valid boolean"),
        ("max_adapter_bytes", "0", "greater than or equal to 1"),
        ("log_format", "xml", "'text' or 'json'"),
        ("quantization", "int4", "'auto', 'nf4', 'int8', 'bf16' or 'fp32'"),
        ("device", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("max_context_tokens", "1", "greater than or equal to 2"),
        ("max_batched_tokens", "0", "greater than or equal to 1"),
        ("max_running", "0", "greater than or equal to 1"),
        ("block_size", "257", "less than or equal to 256"),
        ("kv_cache_bytes", "0", "greater than or equal to 1"),
        ("adapter_slots", "0", "greater than or equal to 1"),
        ("adapter_arena_bytes", "0", "greater than or equal to 1"),
        ("max_lora_rank", "0", "greater than or equal to 1"),
        ("num_threads", "0", "greater than or equal to 1"),
        ("gpu_memory_share", "0", "greater than 0"),
        ("gpu_memory_share", "1.1", "less than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_source_and_range(
    name: str, value: str, fix: str
) -> None:
    message = message_of(environment={f"LORAPLEX_{name.upper()}": value})

    assert f"{name}='{value}' (environment): " in message
    assert fix in message


@pytest.mark.parametrize("name", ["num_threads", "training_threads"])
def test_more_threads_than_four_per_core_are_refused_with_how_many_there_may_be(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("loraplex_server.config.usable_cores", lambda: 2)

    assert getattr(load_config(flags={name: 8}, environment={}), name) == 8
    assert message_of(flags={name: 9}) == (
        f"{name}=9 (flag): at most 8, 4 for each of the 2 cores that this process may use"
    )


def test_all_bad_values_are_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 99999\n")

    message = message_of(file, {"block_size": 0}, {"LORAPLEX_DEVICE": "tpu"})

    assert f"port=99999 (file {file})" in message
    assert "block_size=0 (flag)" in message
    assert "device='tpu' (environment)" in message


def test_settings_that_do_not_go_together_are_refused_with_the_fix() -> None:
    message = message_of(flags={"max_batched_tokens": 32, "max_running": 33})
    assert "max_batched_tokens=32 cannot give each of max_running=33" in message
    assert "raise it or lower max_running" in message


NULLABLE = [
    name for name, field in ServerConfig.model_fields.items() if type(None) in get_args(field.annotation)
]


@pytest.mark.parametrize("name", NULLABLE)
@pytest.mark.parametrize("word", ["null", "NULL", "Null"])
def test_null_means_none_in_every_source(tmp_path: Path, name: str, word: str) -> None:
    for config in (
        load_config(write(tmp_path, f"{name}: {word.lower()}"), {}, {}),
        load_config(None, {name: word}, {}),
        load_config(None, {}, {f"LORAPLEX_{name.upper()}": word}),
    ):
        assert getattr(config, name) is None


def test_null_overrides_a_value_of_a_weaker_source(tmp_path: Path) -> None:
    file = write(tmp_path, "metrics_port: 9000\nbase: some/base")
    config = load_config(file, {"metrics_port": "null"}, {"LORAPLEX_BASE": "null"})
    assert (config.metrics_port, config.base) == (None, None)


def test_folders_are_lists_in_yaml_and_separated_like_a_path_elsewhere(tmp_path: Path) -> None:
    expected = (Path("/a"), Path("/b c"))
    text = os.pathsep.join(["/a", "/b c"])
    assert load_config(write(tmp_path, "adapter_roots: [/a, /b c]"), {}, {}).adapter_roots == expected
    assert load_config(None, {"adapter_roots": ["/a", "/b c"]}, {}).adapter_roots == expected
    assert load_config(None, {}, {"LORAPLEX_ADAPTER_ROOTS": text}).adapter_roots == expected
    assert load_config(None, {}, {"LORAPLEX_ADAPTER_ROOTS": ""}).adapter_roots == ()


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n"), {}, {}) == load_config(environment={})


@pytest.mark.parametrize("text", ["- port", "7", "1: 2", "port"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    assert message_of(file) == f"{file} must hold settings as 'name: value' lines"


def test_a_file_that_is_not_yaml_or_not_there_is_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path, "port: [1")
    assert f"{file} is not YAML" in message_of(file)
    assert f"cannot read the config file {tmp_path}" in message_of(tmp_path)
    assert "No such file" in message_of(tmp_path / "missing.yaml")


def test_settings_are_read_only() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(environment={}).port = 1


def test_every_setting_is_described_and_its_default_is_valid() -> None:
    for name, field in ServerConfig.model_fields.items():
        assert field.description, name
    assert json.loads(load_config(environment={}).model_dump_json())["port"] == 50051


def test_the_engine_gets_what_is_set(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "quantization": "int8",
        "device": "cpu",
        "max_context_tokens": 99,
        "max_batched_tokens": 98,
        "max_running": 7,
        "prefill_spread_steps": 5,
        "min_prefill_rows": 6,
        "block_size": 8,
        "kv_cache_bytes": 12345,
        "adapter_slots": 3,
        "adapter_arena_bytes": 54321,
        "max_lora_rank": 21,
        "prefix_cache": False,
        "num_threads": 1,
        "gpu_memory_share": 0.5,
        "int8_head": True,
        "host_cache_bytes": 2**21,
        "adapter_load_threads": 3,
        "adapter_copy_bytes": 2**17,
    }
    config = load_config(None, {**values, "data_dir": tmp_path}, {})

    engine = config.engine_config(Path("/base"))

    paths: dict[str, Any] = {
        "base_path": Path("/base"),
        "store_path": tmp_path / "adapters",
        "images_path": tmp_path / "images",
    }
    assert engine == EngineConfig(**paths, **values, must_hold_context=True)
    assert {*values, *paths, "must_hold_context"} == set(EngineConfig.__slots__)
    defaults = EngineConfig(**paths)
    for name in values:
        assert getattr(defaults, name) == ServerConfig.model_fields[name].default, name


def test_the_registry_lies_in_the_data_folder_unless_a_url_is_set(tmp_path: Path) -> None:
    config = load_config(None, {"data_dir": tmp_path}, {})
    assert config.resolved_registry_url == f"sqlite:///{tmp_path}/registry.sqlite3"
    config = load_config(None, {"registry_url": "postgresql://db/loraplex"}, {})
    assert config.resolved_registry_url == "postgresql://db/loraplex"


def test_the_data_folder_follows_the_xdg_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert load_config(environment={}).data_dir == Path("/data/loraplex")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert load_config(environment={}).data_dir == Path.home() / ".local/share/loraplex"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batched_tokens": 3, "max_running": 4}, "cannot give each of max_running=4"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"adapter_slots": 0}, "adapter_slots=0 must be at least 1"),
    ],
)
def test_an_engine_config_made_by_hand_is_checked_too(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(base_path=Path("/base"), store_path=Path("/store"), **changes)

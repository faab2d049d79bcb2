"""The server's settings: flags, then environment, then a YAML file, then defaults. Checked once, then read-only."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from loraplex_adapters.errors import LoraplexError
from loraplex_server.admission.url_policy import check_prefix
from loraplex_server.engine.config import Device, EngineConfig, Quantization
from loraplex_server.engine.cores import usable_cores

ENVIRONMENT_PREFIX = "LORAPLEX_"
_CLIENT_VARIABLES = frozenset({"LORAPLEX_SERVER"})  # the command line's: which server to talk to
_THREADS_PER_CORE = 4
_ENGINE_FIELDS = (
    "quantization",
    "device",
    "max_context_tokens",
    "max_batched_tokens",
    "max_running",
    "prefill_spread_steps",
    "min_prefill_rows",
    "block_size",
    "kv_cache_bytes",
    "adapter_slots",
    "adapter_arena_bytes",
    "max_lora_rank",
    "prefix_cache",
    "num_threads",
    "gpu_memory_share",
    "int8_head",
    "host_cache_bytes",
    "adapter_load_threads",
    "adapter_copy_bytes",
)


class ConfigError(LoraplexError):
    """A setting is unknown, malformed or out of range; the message names it and the fix."""

    reason = "INVALID_CONFIG"


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/loraplex`, or `~/.local/share/loraplex`."""
    root = os.environ.get("XDG_DATA_HOME")
    return (Path(root) if root else Path.home() / ".local" / "share") / "loraplex"


class ServerConfig(BaseModel):
    """Every setting of `loraplex serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes any free one.")
    metrics_port: int | None = Field(
        9464,
        ge=0,
        le=65535,
        description="HTTP port of Prometheus metrics; 0 takes any, null switches it off.",
    )
    base: str | None = Field(
        None, description="Hugging Face folder or id of the base model; null takes SmolLM2-135M-Instruct."
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="Folder of the registry and the adapter packages."
    )
    registry_url: str | None = Field(
        None, description="SQLAlchemy URL of the registry; null keeps SQLite in data_dir."
    )
    package_url: str | None = Field(
        None,
        description="fsspec URL of a home for packages that all servers of one registry share; null: this machine's.",
    )
    adapter_roots: tuple[Path, ...] = Field(
        (), description="Folders that CreateAdapter may read from; empty refuses every path."
    )
    adapter_url_schemes: tuple[str, ...] = Field(
        ("file", "s3", "gs", "http", "https"), description="Schemes of the URLs that CreateAdapter may read."
    )
    adapter_url_prefixes: tuple[str, ...] = Field(
        (), description="Beginnings of the URLs that CreateAdapter may read; empty: any of the schemes."
    )
    allow_private_hosts: bool = Field(
        False, description="Let CreateAdapter read URLs of hosts in private networks."
    )
    signature_policy: Literal["off", "warn", "require"] = Field(
        "off", description="What an adapter's signature is for: nothing, a warning, a condition."
    )
    signature_keys: tuple[Path, ...] = Field(
        (), description="PEM files of the public keys that may sign adapters."
    )
    signature_certificates: tuple[Path, ...] = Field(
        (), description="PEM files of the root certificates whose holders may sign adapters."
    )
    max_adapters_per_tenant: int | None = Field(
        None, ge=1, description="Adapters that one tenant may register; null: any number."
    )
    max_bytes_per_tenant: int | None = Field(
        None, ge=1, description="Bytes that one tenant's packages may take together; null: any number."
    )
    admission_timeout_s: float = Field(
        60.0, gt=0, description="Seconds that the check of one package may take."
    )
    admission_memory_bytes: int = Field(
        2**30, ge=2**26, description="Memory that the check of one package may take, bytes."
    )
    golden_prompts: bool = Field(
        True, description="Refuse an adapter that changes no answer to the golden prompts."
    )
    max_waiting: int = Field(
        256, ge=1, le=100_000, description="Requests that may wait; one more is refused."
    )
    max_output_tokens: int = Field(1024, ge=1, description="Tokens of one completion.")
    default_deadline_s: float = Field(
        300.0, gt=0, description="Deadline of a request that brings none, seconds."
    )
    max_deadline_s: float = Field(3600.0, gt=0, description="Longest deadline, seconds; later ones are cut.")
    drain_grace_s: float = Field(30.0, ge=0, description="Seconds running requests get to finish at a stop.")
    write_stall_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a client may leave a stream unread before it is ended."
    )
    upload_idle_timeout_s: float = Field(
        30.0, gt=0, description="Seconds an upload may be silent before it is ended."
    )
    training: bool = Field(False, description="Run training jobs beside the server.")
    training_roots: tuple[Path, ...] = Field(
        (), description="Folders that training jobs may read their data from; empty refuses every path."
    )
    training_max_upload_bytes: int = Field(
        4 * 2**20,
        ge=1,
        le=7 * 2**20,
        description="Bytes of the files that a training job may bring with it; a message has at most 8 MiB.",
    )
    training_max_jobs_per_tenant: int = Field(
        8, ge=1, description="Training jobs of one tenant that may wait or run."
    )
    training_timeout_s: float = Field(
        86400.0, gt=0, description="Seconds that a training job may run without a break."
    )
    training_memory_bytes: int | None = Field(
        None,
        ge=2**28,
        description="Memory that a training job may take, bytes; null takes half of the machine's.",
    )
    training_threads: int | None = Field(
        None, ge=1, description="Threads of a training job on a CPU; null takes one per two cores."
    )
    training_max_waiting: int = Field(
        2, ge=0, description="Requests that may wait while a training job goes on; with more it gives way."
    )
    training_max_pause_s: float = Field(
        10.0,
        ge=0,
        description="Longest time that a training job gives way before each of its steps, seconds.",
    )
    reflection: bool = Field(True, description="Serve gRPC reflection.")
    max_adapter_bytes: int = Field(512 * 2**20, ge=1, description="Largest adapter package, bytes.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines as text or JSON.")

    quantization: Quantization = Field(
        "auto", description="nf4, int8, bf16, fp32, or auto (GPU nf4, CPU int8 if fast)."
    )
    device: Device = Field("auto", description="cpu, cuda, or auto.")
    max_context_tokens: int = Field(
        2048,
        ge=2,
        description="Prompt and completion of a request together; lowered to what the base supports.",
    )
    max_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of one forward pass, prefill and decode together; null takes 512, on a GPU 4096.",
    )
    max_running: int = Field(
        64,
        ge=1,
        description="Sequences that run at once. On a GPU each takes 4 bytes for every token of the vocabulary.",
    )
    prefill_spread_steps: int | None = Field(
        None,
        ge=1,
        description="Steps that a prompt is spread over while others decode; 1: none. null takes 1, on a GPU 16.",
    )
    min_prefill_rows: int = Field(
        8,
        ge=1,
        description="Prompt tokens that a step takes at least where prompts are spread; "
        "with more, others wait longer for a token, and all get more of them per second.",
    )
    block_size: int = Field(32, ge=1, le=256, description="Tokens of a key-value block.")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory of the key-value cache, bytes; null takes 512 MiB, on a GPU what the rest leaves.",
    )
    gpu_memory_share: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's free memory that may be used."
    )
    int8_head: bool = Field(
        False, description="On a GPU, hold the output head in int8 whatever the layers have."
    )
    adapter_slots: int = Field(16, ge=1, description="Adapters resident at once.")
    adapter_arena_bytes: int = Field(256 * 2**20, ge=1, description="Memory of resident adapters, bytes.")
    host_cache_bytes: int | None = Field(
        None,
        ge=2**20,
        description="Host memory for adapters behind the arena, bytes; null takes a part of the machine's.",
    )
    adapter_load_threads: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Threads that read adapters; null takes 1, with a GPU three quarters of the cores, up to 12.",
    )
    adapter_copy_bytes: int | None = Field(
        None,
        ge=2**16,
        description="Adapter bytes queued into the arena at a time; null takes what is not felt.",
    )
    max_lora_rank: int = Field(128, ge=1, description="Largest LoRA rank that may be registered.")
    prefix_cache: bool = Field(True, description="Reuse keys and values of equal prompt beginnings.")
    num_threads: int | None = Field(
        None, ge=1, description="Threads of the engine on a CPU; null takes one per core."
    )

    @field_validator(
        *("metrics_port", "base", "registry_url", "package_url", "num_threads", "max_batched_tokens"),
        *("kv_cache_bytes", "max_adapters_per_tenant", "max_bytes_per_tenant", "host_cache_bytes"),
        *("adapter_load_threads", "adapter_copy_bytes", "training_memory_bytes", "training_threads"),
        "prefill_spread_steps",
        mode="before",
    )
    @classmethod
    def _read_null(cls, value: Any) -> Any:
        """Flags and environment carry text; `null` there means what it means in YAML."""
        return None if isinstance(value, str) and value.lower() == "null" else value

    @field_validator(
        "adapter_roots", "signature_keys", "signature_certificates", "training_roots", mode="before"
    )
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("adapter_url_schemes", "adapter_url_prefixes", mode="before")
    @classmethod
    def _split_by_commas(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("adapter_url_prefixes")
    @classmethod
    def _check_prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in value:
            check_prefix(prefix)
        return value

    @field_validator("num_threads", "training_threads")
    @classmethod
    def _bound_threads(cls, value: int | None) -> int | None:
        """More gain nothing, and a system that refuses them ends the process without a word."""
        cores = usable_cores()
        if value is not None and value > _THREADS_PER_CORE * cores:
            raise ValueError(
                f"at most {_THREADS_PER_CORE * cores}, {_THREADS_PER_CORE} for each of the {cores} cores that this "
                "process may use"
            )
        return value

    @model_validator(mode="after")
    def _check_together(self) -> ServerConfig:
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_running:
            raise ValueError(
                f"max_batched_tokens={self.max_batched_tokens} cannot give each of max_running="
                f"{self.max_running} sequences one token per step; raise it or lower max_running"
            )
        return self

    @property
    def store_path(self) -> Path:
        """Folder of the packages, by digest."""
        return self.data_dir / "adapters"

    @property
    def images_path(self) -> Path:
        """Folder of the packages as an engine holds them, made from those in `store_path`."""
        return self.data_dir / "images"

    @property
    def training_path(self) -> Path:
        """Folder of the training jobs."""
        return self.data_dir / "training"

    @property
    def resolved_registry_url(self) -> str:
        """The registry's SQLAlchemy URL."""
        return self.registry_url or f"sqlite:///{self.data_dir / 'registry.sqlite3'}"

    def engine_config(self, base_path: Path) -> EngineConfig:
        """The part that the engine process gets."""
        values = {name: getattr(self, name) for name in _ENGINE_FIELDS}
        return EngineConfig(
            base_path=base_path,
            store_path=self.store_path,
            images_path=self.images_path,
            must_hold_context=True,
            **values,
        )


def load_config(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerConfig:
    """Merge the sources and check the result. Raises ConfigError naming the key, its source and the fix."""
    values: dict[str, Any] = {}
    source_of: dict[str, str] = {}
    sources = [
        (f"file {file}", _read_yaml(file) if file is not None else {}),
        ("environment", _from_environment(os.environ if environment is None else environment)),
        ("flag", {key: value for key, value in (flags or {}).items() if value is not None}),
    ]
    for source, settings in sources:
        for key, value in settings.items():
            _check_known(key, source)
            values[key], source_of[key] = value, source
    try:
        return ServerConfig(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(issue, source_of) for issue in error.errors())) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{file} must hold settings as 'name: value' lines")
    return content


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _CLIENT_VARIABLES
    }


def _check_known(key: str, source: str) -> None:
    known = ServerConfig.model_fields
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "; see `loraplex config schema`"
    raise ConfigError(f"unknown setting '{key}' ({source}){hint}")


def _explain(issue: Any, source_of: Mapping[str, str]) -> str:
    message = str(issue["msg"]).removeprefix("Value error, ")
    if not issue["loc"]:
        return message
    key = str(issue["loc"][0])
    return f"{key}={issue['input']!r} ({source_of.get(key, 'default')}): {message}"

"""`loraplex serve`."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from loraplex_cli.options import Device, JsonOption
from loraplex_cli.output import Output, command


class Quantization(StrEnum):
    """As loraplex_server.engine.config.Quantization."""

    AUTO = "auto"
    NF4 = "nf4"
    INT8 = "int8"
    BF16 = "bf16"
    FP32 = "fp32"


class LogFormat(StrEnum):
    """As ServerConfig.log_format."""

    TEXT = "text"
    JSON = "json"


class SignaturePolicy(StrEnum):
    """As ServerConfig.signature_policy."""

    OFF = "off"
    WARN = "warn"
    REQUIRE = "require"


def _flag(help_text: str, default: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, show_default=default)


def _optional_number(help_text: str, default: str = "null") -> Any:
    """Of a setting that `null` switches off: text here, which the setting itself reads as it reads the environment."""
    return typer.Option(help=help_text, show_default=default, metavar="<int|null>")


STAGES = {"compile": "compiling the products", "load": "loading the base model", "capture": "compiling"}
"""What is shown for the stages of an engine that starts."""


# One option per field of ServerConfig, spelt out because importing pydantic would slow every --help down. A test holds
# names, defaults and help texts to the fields. None means: not given here, so environment, file or default decide.
def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    host: Annotated[str | None, _flag("Address to listen on.", "127.0.0.1")] = None,
    port: Annotated[int | None, _flag("gRPC port; 0 takes any free one.", "50051")] = None,
    metrics_port: Annotated[
        str | None,
        _optional_number("HTTP port of Prometheus metrics; 0 takes any, null switches it off.", "9464"),
    ] = None,
    base: Annotated[
        str | None,
        _flag(
            "Hugging Face folder or id of the base model; null takes SmolLM2-135M-Instruct.",
            "SmolLM2-135M-Instruct",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, _flag("Folder of the registry and the adapter packages.", "user data folder")
    ] = None,
    registry_url: Annotated[
        str | None, _flag("SQLAlchemy URL of the registry; null keeps SQLite in data_dir.", "null")
    ] = None,
    package_url: Annotated[
        str | None,
        _flag(
            "fsspec URL of a home for packages that all servers of one registry share; null: this machine's.",
            "null",
        ),
    ] = None,
    adapter_roots: Annotated[
        list[Path] | None,
        _flag(
            "Folders that CreateAdapter may read from; empty refuses every path.", "empty", "--adapter-root"
        ),
    ] = None,
    adapter_url_schemes: Annotated[
        list[str] | None,
        _flag(
            "Schemes of the URLs that CreateAdapter may read.",
            "file, s3, gs, http, https",
            "--adapter-url-scheme",
        ),
    ] = None,
    adapter_url_prefixes: Annotated[
        list[str] | None,
        _flag(
            "Beginnings of the URLs that CreateAdapter may read; empty: any of the schemes.",
            "empty",
            "--adapter-url-prefix",
        ),
    ] = None,
    allow_private_hosts: Annotated[
        bool | None, _flag("Let CreateAdapter read URLs of hosts in private networks.", "false")
    ] = None,
    signature_policy: Annotated[
        SignaturePolicy | None,
        _flag("What an adapter's signature is for: nothing, a warning, a condition.", "off"),
    ] = None,
    signature_keys: Annotated[
        list[Path] | None,
        _flag("PEM files of the public keys that may sign adapters.", "empty", "--signature-key"),
    ] = None,
    signature_certificates: Annotated[
        list[Path] | None,
        _flag(
            "PEM files of the root certificates whose holders may sign adapters.",
            "empty",
            "--signature-certificate",
        ),
    ] = None,
    max_adapters_per_tenant: Annotated[
        str | None, _optional_number("Adapters that one tenant may register; null: any number.")
    ] = None,
    max_bytes_per_tenant: Annotated[
        str | None,
        _optional_number("Bytes that one tenant's packages may take together; null: any number."),
    ] = None,
    admission_timeout_s: Annotated[
        float | None, _flag("Seconds that the check of one package may take.", "60")
    ] = None,
    admission_memory_bytes: Annotated[
        int | None, _flag("Memory that the check of one package may take, bytes.", "1073741824")
    ] = None,
    golden_prompts: Annotated[
        bool | None, _flag("Refuse an adapter that changes no answer to the golden prompts.", "true")
    ] = None,
    max_waiting: Annotated[int | None, _flag("Requests that may wait; one more is refused.", "256")] = None,
    max_output_tokens: Annotated[int | None, _flag("Tokens of one completion.", "1024")] = None,
    default_deadline_s: Annotated[
        float | None, _flag("Deadline of a request that brings none, seconds.", "300")
    ] = None,
    max_deadline_s: Annotated[
        float | None, _flag("Longest deadline, seconds; later ones are cut.", "3600")
    ] = None,
    drain_grace_s: Annotated[
        float | None, _flag("Seconds running requests get to finish at a stop.", "30")
    ] = None,
    write_stall_timeout_s: Annotated[
        float | None, _flag("Seconds a client may leave a stream unread before it is ended.", "30")
    ] = None,
    upload_idle_timeout_s: Annotated[
        float | None, _flag("Seconds an upload may be silent before it is ended.", "30")
    ] = None,
    training: Annotated[bool | None, _flag("Run training jobs beside the server.", "false")] = None,
    training_roots: Annotated[
        list[Path] | None,
        _flag(
            "Folders that training jobs may read their data from; empty refuses every path.",
            "empty",
            "--training-root",
        ),
    ] = None,
    training_max_upload_bytes: Annotated[
        int | None,
        _flag(
            "Bytes of the files that a training job may bring with it; a message has at most 8 MiB.",
            "4194304",
        ),
    ] = None,
    training_max_jobs_per_tenant: Annotated[
        int | None, _flag("Training jobs of one tenant that may wait or run.", "8")
    ] = None,
    training_timeout_s: Annotated[
        float | None, _flag("Seconds that a training job may run without a break.", "86400")
    ] = None,
    training_memory_bytes: Annotated[
        str | None,
        _optional_number("Memory that a training job may take, bytes; null takes half of the machine's."),
    ] = None,
    training_threads: Annotated[
        str | None,
        _optional_number("Threads of a training job on a CPU; null takes one per two cores."),
    ] = None,
    training_max_waiting: Annotated[
        int | None,
        _flag("Requests that may wait while a training job goes on; with more it gives way.", "2"),
    ] = None,
    training_max_pause_s: Annotated[
        float | None,
        _flag("Longest time that a training job gives way before each of its steps, seconds.", "10"),
    ] = None,
    reflection: Annotated[bool | None, _flag("Serve gRPC reflection.", "true")] = None,
    max_adapter_bytes: Annotated[int | None, _flag("Largest adapter package, bytes.", "536870912")] = None,
    log_format: Annotated[LogFormat | None, _flag("Log lines as text or JSON.", "text")] = None,
    quantization: Annotated[
        Quantization | None, _flag("nf4, int8, bf16, fp32, or auto (GPU nf4, CPU int8 if fast).", "auto")
    ] = None,
    device: Annotated[Device | None, _flag("cpu, cuda, or auto.", "auto")] = None,
    max_context_tokens: Annotated[
        int | None,
        _flag("Prompt and completion of a request together; lowered to what the base supports.", "2048"),
    ] = None,
    max_batched_tokens: Annotated[
        str | None,
        _optional_number(
            "Tokens of one forward pass, prefill and decode together; null takes 512, on a GPU 4096."
        ),
    ] = None,
    max_running: Annotated[
        int | None,
        _flag(
            "Sequences that run at once. On a GPU each takes 4 bytes for every token of the vocabulary.", "64"
        ),
    ] = None,
    prefill_spread_steps: Annotated[
        str | None,
        _optional_number(
            "Steps that a prompt is spread over while others decode; 1: none. null takes 1, on a GPU 16."
        ),
    ] = None,
    min_prefill_rows: Annotated[
        int | None,
        _flag(
            "Prompt tokens that a step takes at least where prompts are spread; "
            "with more, others wait longer for a token, and all get more of them per second.",
            "8",
        ),
    ] = None,
    block_size: Annotated[int | None, _flag("Tokens of a key-value block.", "32")] = None,
    kv_cache_bytes: Annotated[
        str | None,
        _optional_number(
            "Memory of the key-value cache, bytes; null takes 512 MiB, on a GPU what the rest leaves."
        ),
    ] = None,
    gpu_memory_share: Annotated[
        float | None, _flag("Share of the GPU's free memory that may be used.", "0.9")
    ] = None,
    int8_head: Annotated[
        bool | None, _flag("On a GPU, hold the output head in int8 whatever the layers have.", "false")
    ] = None,
    adapter_slots: Annotated[int | None, _flag("Adapters resident at once.", "16")] = None,
    adapter_arena_bytes: Annotated[
        int | None, _flag("Memory of resident adapters, bytes.", "268435456")
    ] = None,
    host_cache_bytes: Annotated[
        str | None,
        _optional_number(
            "Host memory for adapters behind the arena, bytes; null takes a part of the machine's."
        ),
    ] = None,
    adapter_load_threads: Annotated[
        str | None,
        _optional_number(
            "Threads that read adapters; null takes 1, with a GPU three quarters of the cores, up to 12."
        ),
    ] = None,
    adapter_copy_bytes: Annotated[
        str | None,
        _optional_number("Adapter bytes queued into the arena at a time; null takes what is not felt."),
    ] = None,
    max_lora_rank: Annotated[int | None, _flag("Largest LoRA rank that may be registered.", "128")] = None,
    prefix_cache: Annotated[
        bool | None, _flag("Reuse keys and values of equal prompt beginnings.", "true")
    ] = None,
    num_threads: Annotated[
        str | None, _optional_number("Threads of the engine on a CPU; null takes one per core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve until SIGTERM, SIGINT or Drain. Settings: flags, then LORAPLEX_… environment, then the file.

    With --json, one document with the ports is printed when the server is ready; logs go to standard error.
    """
    with command(as_json) as output:
        _run(config, setting_flags(context.params), output)


def setting_flags(parameters: dict[str, Any]) -> dict[str, Any]:
    """The settings among the command's parameters that were given."""
    return {
        name: str(value) if isinstance(value, StrEnum) else value
        for name, value in parameters.items()
        if name not in ("config", "as_json") and value is not None and value not in ([], ())
    }


def _run(file: Path | None, flags: dict[str, Any], output: Output) -> None:
    from loraplex_server.config import load_config

    settings = load_config(file, flags)

    from loraplex_cli.logs import start_logging
    from loraplex_cli.progress import stage_bars
    from loraplex_server.app import ServerAddress, run_server
    from loraplex_server.base.resolve import resolve_base

    start_logging(settings.log_format)

    def announce(address: ServerAddress) -> None:
        output.result(
            {"host": settings.host, "grpc_port": address.grpc_port, "metrics_port": address.metrics_port},
            f"serving on {settings.host}:{address.grpc_port}"
            + ("" if address.metrics_port is None else f", metrics on port {address.metrics_port}"),
        )

    # Until the server has handlers of its own: leave in order, also as the first process of a container.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # What collects JSON logs reads nothing else.
    with stage_bars(are_shown=settings.log_format == "text") as progress:
        resolve_base(settings.base, progress)  # the server's own call then finds the base in place
        run_server(
            settings, announce, lambda stage, done, total: progress(STAGES.get(stage, stage), done, total)
        )

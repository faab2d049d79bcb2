"""`loraplex generate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError
from loraplex_cli.interruptible import interruptible
from loraplex_cli.options import (
    DEFAULT_SERVER,
    MAX_COUNT,
    MAX_SEED,
    JsonOption,
    ServerOption,
    TimeoutOption,
    within,
)
from loraplex_cli.output import Output, command

if TYPE_CHECKING:
    from loraplex_client import Finished
    from loraplex_client.client import CompletionStream
    from loraplex_client.requests import GenerateOptions


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; '-' reads standard input.")],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", help="NAME, NAME@ALIAS or NAME@DIGEST of the adapter; left out: the base."
        ),
    ] = None,
    routing_key: Annotated[
        str | None, typer.Option(help="Equal keys get the same version where traffic is split.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the text as it is, without chat template.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Largest number of tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(callback=within(0, 2), help="0 is greedy, [0, 2].")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, max=MAX_COUNT, help="Keep the k most likely tokens; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            callback=within(0, 1, without_low=True), help="Keep tokens up to this probability, (0, 1]."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(callback=within(0, 1), help="Drop tokens below this share of the best one, [0, 1]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the completion; repeatable.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on behind the base's end of sequence.")
    ] = False,
    logprobs: Annotated[
        int | None, typer.Option(min=0, max=20, help="Alternatives per token; needs --json.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Ask once; the answer streams to the terminal. With --json it comes whole, with usage and timings."""
    with command(as_json) as output:
        if logprobs is not None and not as_json:
            raise CommandError(
                "--logprobs needs --json: text has no place for them", ExitCode.BAD_INPUT, "BAD_USAGE"
            )
        if raw and system is not None:
            raise CommandError(
                "--system has no place in a --raw prompt: write it into the text",
                ExitCode.BAD_INPUT,
                "BAD_USAGE",
            )
        from loraplex_client import LoraplexClient

        text = _read_prompt(prompt)
        _check_utf8(
            {
                "--system": system,
                "--adapter": adapter,
                "--routing-key": routing_key,
                "--stop": "".join(stop or ()),
            }
        )
        options = _given(
            adapter=adapter,
            routing_key=routing_key,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop or None,
            ignore_eos=ignore_eos or None,
            logprobs=logprobs,
        )
        source: dict[str, Any] = {"prompt": text} if raw else {"messages": _messages(text, system)}
        with LoraplexClient(server, timeout_s=timeout) as client:
            if as_json:
                completion = client.generate(**source, **options)
                output.result(asdict(completion), completion.text)
            else:
                with client.stream(**source, **options) as stream:
                    _print_stream(stream, output)


def _print_stream(stream: CompletionStream, output: Output) -> None:
    from loraplex_client import Delta, Finished

    is_mid_line = False
    try:
        for event in interruptible(stream):
            if isinstance(event, Delta):
                typer.echo(event.text, nl=False)
                sys.stdout.flush()
                is_mid_line = True
            elif isinstance(event, Finished):
                typer.echo()
                is_mid_line = False
                _note_end(event, output)
    finally:
        if is_mid_line:  # what broke off, and is told on a line of its own
            typer.echo()


def _note_end(event: Finished, output: Output) -> None:
    seconds = event.timings.prefill_seconds + event.timings.decode_seconds
    output.note(
        f"{event.usage.completion_tokens} tokens in {seconds:.2f} s, ended by {event.finish_reason.value}"
    )


def _read_prompt(prompt: str) -> str:
    """Raises CommandError for bytes that are no text."""
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError:
        raise _not_utf8("the prompt") from None
    _check_utf8({"the prompt": text})
    return text


def _check_utf8(texts: Mapping[str, str | None]) -> None:
    """Python hides bytes that are no UTF-8 in surrogates, which the wire does not carry. Raises CommandError."""
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise _not_utf8(name) from None


def _not_utf8(name: str) -> CommandError:
    return CommandError(f"{name} is not UTF-8", ExitCode.BAD_INPUT, "BAD_USAGE")


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system is not None else []
    return [*turns, {"role": "user", "content": text}]


def _given(**options: Any) -> GenerateOptions:
    """What was left out stays out, so that the server's defaults hold."""
    given = {name: value for name, value in options.items() if value is not None}
    return cast("GenerateOptions", given)

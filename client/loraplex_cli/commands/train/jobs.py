"""`loraplex train jobs`: trainings on the server's machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraplex_cli.commands.train.job_text import (
    document,
    event_document,
    event_line,
    failure_of_job,
    job_text,
    jobs_text,
)
from loraplex_cli.exit_codes import EXIT_CODES_HELP
from loraplex_cli.interruptible import interruptible
from loraplex_cli.options import DEFAULT_SERVER, JsonOption, ServerOption, TimeoutOption
from loraplex_cli.output import command

if TYPE_CHECKING:
    from loraplex_client import LoraplexClient, TrainingJob
    from loraplex_trainer.recipe.document import Recipe

app = typer.Typer(name="jobs", help="Train on the server's machine.", no_args_is_help=True)

JobArgument = Annotated[
    str, typer.Argument(help="Name of the job, tenants/TENANT/trainingJobs/JOB, as create prints it.")
]


@app.command(epilog=EXIT_CODES_HELP)
def create(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml; the files that it names are sent with it.")],
    tenant: Annotated[str, typer.Option(help="To whom job and adapter belong; left out: the recipe's.")] = "",
    on_server: Annotated[
        str,
        typer.Option(
            "--on-server",
            help="Folder of the server's machine that the recipe's paths are relative to; no file is sent.",
        ),
    ] = "",
    alias: Annotated[
        str, typer.Option(help="Alias that shall point at the version; left out: candidate.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, queue nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job until it has ended.")] = False,
    request_id: Annotated[
        str, typer.Option(help="Given again, the same job is created once; left out: drawn.")
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Queue a training: the server checks the recipe, trains, asks the gate and registers the adapter."""
    with command(as_json) as output:
        from loraplex_cli.progress import spinner
        from loraplex_client import LoraplexClient
        from loraplex_trainer.recipe.document import read_recipe

        read = read_recipe(recipe)
        files = {} if on_server else _files(read, recipe.parent)
        with LoraplexClient(server, timeout_s=timeout) as client:
            with spinner("checking the recipe"):
                job = client.training.create(
                    recipe.read_text(encoding="utf-8"),
                    tenant or read.tenant,
                    files=files,
                    data_folder=on_server,
                    alias=alias,
                    validate_only=dry_run,
                    request_id=request_id,
                )
            if wait and not dry_run:
                job = _followed(client, job)
                _check_ending(job)
        output.result({"job": document(job), "queued": not dry_run}, job_text(job))


@app.command(epilog=EXIT_CODES_HELP)
def get(
    name: JobArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show one job: its state, how far it is, what the gate said."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            job = client.training.get(name)
        output.result({"job": document(job)}, job_text(job))


@app.command("list", epilog=EXIT_CODES_HELP)
def list_(
    tenant: Annotated[str, typer.Option(help="Only jobs of this tenant.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, newest first."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        parent = f"tenants/{tenant}" if tenant else ""
        with LoraplexClient(server, timeout_s=timeout) as client:
            found = list(client.training.list(parent))
        output.result({"jobs": [document(job) for job in found]}, jobs_text(found))


@app.command(epilog=EXIT_CODES_HELP)
def cancel(
    name: JobArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """End a job; one that runs ends at its next step."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            job = client.training.cancel(name)
        output.result({"job": document(job)}, job_text(job))


@app.command(epilog=EXIT_CODES_HELP)
def resume(
    name: JobArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Let a job that is paused, or failed and resumable, go on from its last checkpoint."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server, timeout_s=timeout) as client:
            job = client.training.resume(name)
        output.result({"job": document(job)}, job_text(job))


@app.command(epilog=EXIT_CODES_HELP)
def watch(
    name: JobArgument,
    after: Annotated[
        int,
        typer.Option(
            "--after", min=0, max=2**63 - 1, help="Go on behind the event of this number; 0: from the oldest."
        ),
    ] = 0,
    server: ServerOption = DEFAULT_SERVER,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds without a server until giving up.")
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document per event, each on a line.")
    ] = False,
) -> None:
    """Print what a job does until it has ended or is paused; the exit code is the job's end."""
    with command(as_json) as output:
        from loraplex_client import LoraplexClient

        with LoraplexClient(server) as client:
            with client.training.events(name, after, patience_s=timeout) as events:
                for event in interruptible(events):
                    output.result({"event": event_document(event)}, event_line(event))
            job = client.training.get(name)
        _check_ending(job)


def _files(recipe: Recipe, folder: Path) -> dict[str, bytes]:
    """What the recipe names, by the paths that it uses. Raises CommandError for what is not there."""
    from loraplex_cli.commands.adapters.arguments import bad_usage
    from loraplex_trainer.jobs.recipe_files import found_files, named_files

    files: dict[str, bytes] = {}
    for named in named_files(recipe):
        found = found_files(named.pattern, folder)
        if not found:
            raise bad_usage(
                f"{named.field}: '{named.pattern}' names no file below the recipe's folder; move it there, or name a "
                "folder of the server's machine with --on-server"
            )
        files |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return files


def _followed(client: LoraplexClient, job: TrainingJob) -> TrainingJob:
    """The job when it has ended, with a bar for each of its stages until then."""
    from loraplex_cli.progress import stage_bars
    from loraplex_client import TrainingEventKind

    with stage_bars() as progress, client.training.events(job.name) as events:
        stage = ""
        for event in interruptible(events):
            if event.kind is TrainingEventKind.STAGE:
                if stage:
                    progress(stage, 1, 1)
                stage = event.stage
                progress(stage, 0, 1)
            elif event.kind is TrainingEventKind.STEP and event.num_steps:
                progress(event.stage, event.step, event.num_steps)
    return client.training.get(job.name)


def _check_ending(job: TrainingJob) -> None:
    """Raises CommandError for a job that was waited for and did not succeed."""
    failure = failure_of_job(job)
    if failure is not None:
        raise failure

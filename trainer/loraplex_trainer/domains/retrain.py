"""Trains, judges and packages the shipped domains again.

`python -m loraplex_trainer.domains.retrain finance education --method qlora --output build` writes, for each domain,
`build/<domain>/<method>/` (the package) and `build/<domain>/reports/<method>.{json,html}`.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from loraplex_trainer.base_model import Precision
from loraplex_trainer.domains.files import DOMAINS

Method = Literal["lora", "qlora"]
TRAINED_ON: dict[Method, Precision] = {"lora": "bf16", "qlora": "nf4"}
"""The base's precision in training, and so the one to be judged on: an adapter learns around its base's rounding."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What to make again, from where, into where."""

    adapters: Path  # holds <domain>/recipe.yaml
    output: Path
    runs: Path  # run folders, with their checkpoints
    base_folder: Path
    method: Method
    precisions: tuple[Precision, ...]  # to evaluate on; the first is the report's own


def retrain(domain: str, job: Job) -> dict[str, Any]:
    """Returns the domain's report. Raises whatever training, evaluation and packaging raise."""
    from loraplex_adapters.package import read_package
    from loraplex_trainer.judge.compare import variant_of
    from loraplex_trainer.judge.evaluate import evaluate_package, evaluate_run
    from loraplex_trainer.judge.report import write_domain_report
    from loraplex_trainer.packaging.package import package_run
    from loraplex_trainer.recipe.document import read_recipe
    from loraplex_trainer.train.run_folder import RunFolder
    from loraplex_trainer.train.session import train

    folder = job.adapters / domain
    others = [job.adapters / name / "recipe.yaml" for name in sorted(DOMAINS) if name != domain]
    recipe = variant_of(read_recipe(folder / "recipe.yaml"), job.method)
    run = RunFolder(job.runs / f"{domain}-{job.method}")
    started = time.monotonic()
    train(recipe, folder, run.path, job.base_folder)
    log.info("%s %s: trained in %.0f s", domain, job.method, time.monotonic() - started)
    first = evaluate_run(run, folder, job.base_folder, precision=job.precisions[0], others=others)
    rest = [
        evaluate_package(run.package, recipe, folder, job.base_folder, precision=precision, others=others)
        for precision in job.precisions[1:]
    ]
    package = package_run(run, job.base_folder, job.output / domain / job.method)
    log.info(
        "%s %s: domain %.3f, general %.3f",
        domain,
        job.method,
        first.domain_adapter.value,
        first.general_adapter.value,
    )
    return write_domain_report(
        job.output / domain / "reports",
        run,
        first,
        job.method,
        package_digest=read_package(package).digest,
        device=device_name(),
        other_precisions=rest,
    )


def device_name() -> str:
    """Of what trains here."""
    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and retrain each domain, one after the other."""
    from loraplex_server.base.resolve import resolve_base

    parser = argparse.ArgumentParser(description="Trains, judges and packages the shipped domains again.")
    parser.add_argument("domains", nargs="+", choices=sorted(DOMAINS), metavar="DOMAIN")
    parser.add_argument("--method", choices=get_args(Method), default="lora")
    parser.add_argument("--output", type=Path, required=True, help="folder of packages and reports")
    parser.add_argument(
        "--adapters", type=Path, default=Path("adapters"), help="folder of the domains' recipes"
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs; left out: a temporary one")
    parser.add_argument("--base", help="base folder or id; left out: the default base")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=get_args(Precision),
        help="of the base to judge on, the report's own first; left out: the one that was trained on",
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory(prefix="loraplex-retrain-") as scratch:
        job = Job(
            adapters=given.adapters,
            output=given.output,
            runs=given.runs or Path(scratch),
            base_folder=resolve_base(given.base),
            method=given.method,
            precisions=tuple(given.precision or [TRAINED_ON[given.method]]),
        )
        for domain in given.domains:
            retrain(domain, job)


if __name__ == "__main__":
    main()

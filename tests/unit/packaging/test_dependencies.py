"""What the sources import, the distribution declares; and without an extra, a command says which one it needs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from loraplex_cli.failures import EXTRA_OF

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {path.name: path for path in ROOT.glob("*/loraplex_*")} | {"loraplex": ROOT / "proto/gen/loraplex"}
# The first comes with PyTorch for CUDA, the second is an extra of its own; the code says or does without where they are
# absent.
OPTIONAL = {"triton", "lm_eval"}


def _normal(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


BASE = {_normal(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    extra: {_normal(requirement) for requirement in requirements}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}


def _imports(package: str) -> set[str]:
    """Top-level names of the libraries that a package's sources import anywhere."""
    names: set[str] = set()
    for path in OURS[package].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - OURS.keys() - OPTIONAL


@lru_cache
def _installed() -> Mapping[str, list[str]]:
    return packages_distributions()


def _distributions(module: str) -> set[str]:
    """Normalized names of the installed distributions that hold a module."""
    return {_normal(name) for name in _installed().get(module, [])}


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_library_that_a_package_imports_is_declared(package: str) -> None:
    allowed = BASE if package in ("loraplex", "loraplex_client") else BASE.union(*EXTRAS.values())

    undeclared = {name for name in _imports(package) if not _distributions(name) & allowed}

    assert undeclared == set()


def test_every_library_that_the_light_installation_lacks_names_the_extra_that_brings_it() -> None:
    heavy = {name for package in OURS for name in _imports(package) if not _distributions(name) & BASE}

    assert heavy == EXTRA_OF.keys()
    assert all(_distributions(name) & EXTRAS[extra] for name, extra in EXTRA_OF.items())


def _run_without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`loraplex` where no library of an extra can be imported."""
    script = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(EXTRA_OF)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["loraplex", *{list(arguments)!r}]
from loraplex_cli.main import main
main()
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


RECIPE = str(ROOT / "adapters" / "finance" / "recipe.yaml")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("serve", "--port", "0"), "server"),
        (("base", "fetch"), "server"),
        (("base", "inspect"), "server"),
        (("demo", "--adapters", str(ROOT / "adapters")), "server"),
        (("loadtest", "run"), "loadtest"),
        (("loadtest", "selftest"), "loadtest"),
        (("train", "run", RECIPE), "trainer"),
        (("train", "data", "inspect", RECIPE), "trainer"),
        (("train", "eval", RECIPE), "trainer"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_without_its_extra_a_command_ends_with_2_and_one_line_that_names_it(
    command: tuple[str, ...], extra: str
) -> None:
    done = _run_without_extras(*command, "--json")

    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["reason"] == "EXTRA_MISSING"
    (line,) = done.stderr.splitlines()
    assert f"pip install 'loraplex[{extra}]'" in line


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        (("--help",), 0),
        (("version",), 0),
        (("config", "check"), 0),
        (("config", "schema"), 0),
        (("base", "list"), 0),
        (("generate", "hi", "--server", "127.0.0.1:1", "--timeout", "2"), 3),
        (("adapters", "list", "--server", "127.0.0.1:1", "--timeout", "2"), 3),
        (("adapters", "register", "a", str(ROOT / "adapters/finance/package"), "--server", "127.0.0.1:1"), 3),
        (("health", "--server", "127.0.0.1:1"), 3),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_what_needs_no_model_works_without_extras(command: tuple[str, ...], exit_code: int) -> None:
    done = _run_without_extras(*command)

    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_front_end_is_imported_without_torch() -> None:
    script = "import sys, loraplex_server.app; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

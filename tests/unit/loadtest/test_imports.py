"""The load tester runs where torch and the server are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "loadtest/loraplex_loadtest"
BLOCKED = ("torch", "transformers", "safetensors", "loraplex_server", "loraplex_trainer")


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    script = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
{code}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_every_module_can_be_imported_without_torch() -> None:
    modules = [
        "loraplex_loadtest." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    ]

    done = run_blocked(f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)")

    assert len(modules) > 30
    assert done.stderr == ""


def test_the_command_lists_its_scenarios_without_torch() -> None:
    done = run_blocked(
        "sys.argv = ['loraplex', 'loadtest', 'scenarios']\nfrom loraplex_cli.main import main\nmain()"
    )

    assert "steady-zipf" in done.stdout, done.stderr


def test_importing_the_command_line_imports_nothing_of_the_load_tester() -> None:
    done = run_blocked(
        "import loraplex_cli.main\nprint([name for name in sys.modules if name.startswith('loraplex_loadtest')])"
    )

    assert done.stdout.strip() == "[]"

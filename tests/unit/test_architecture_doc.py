"""docs/architecture.md names every module, and what it says of the code can be found there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PACKAGES = sorted(ROOT.glob("*/loraplex_*"))


def _modules() -> set[str]:
    """All but empty files."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in package.rglob("*.py")
        if path.read_text().strip()
    }


def test_every_module_has_a_line_and_every_line_a_module() -> None:
    listed: list[str] = []
    for section in PAGE.split("\n### `")[1:]:
        package = section.partition("`")[0]
        listed += [f"{package}/{name}" for name in re.findall(r"^- `([^`]+\.py)` \S", section, re.MULTILINE)]

    assert {"without a line": _modules() - set(listed), "without a module": set(listed) - _modules()} == {
        "without a line": set(),
        "without a module": set(),
    }
    assert len(listed) == len(set(listed))


def test_every_name_in_the_text_is_one_of_the_code() -> None:
    known: set[str] = set()
    for module in _modules():
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            if isinstance(node, ast.ClassDef):
                members = {
                    child.name
                    for child in node.body
                    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                }
                known |= {node.name, *(f"{node.name}.{member}" for member in members)}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(f"{node.name}()")
            elif isinstance(node, ast.Assign):
                known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.add(node.value)  # reasons of errors
    text = PAGE.partition("\n## Modules\n")[0]

    named = set(re.findall(r"`([A-Z]\w*(?:\.\w+)?|\w+\(\))`", text))

    assert len(named) > 40
    assert named - known == set()

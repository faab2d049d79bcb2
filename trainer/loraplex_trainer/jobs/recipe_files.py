"""Which files a recipe names, and whether they are there and stay within one folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from loraplex_trainer.recipe.document import Recipe

_BUNDLED = "bundled"


class NamedFiles(NamedTuple):
    """A path or pattern of a recipe."""

    field: str  # "data.sources.0.path"
    pattern: str


def named_files(recipe: Recipe) -> Iterator[NamedFiles]:
    """Everything in a recipe that names files, but for the base."""
    for index, source in enumerate(recipe.data.sources):
        yield NamedFiles(f"data.sources.{index}.path", source.path)
    for number, stage in enumerate(recipe.stages):
        for index, source in enumerate(stage.sources or ()):
            yield NamedFiles(f"stages.{number}.sources.{index}.path", source.path)
    for field, path in (
        ("data.augment.lexicon", recipe.data.augment.lexicon),
        ("data.general.path", recipe.data.general.path),
        ("eval.domain", recipe.eval.domain),
    ):
        if path is not None and str(path) != _BUNDLED:
            yield NamedFiles(field, str(path))


def found_files(pattern: str, folder: Path) -> list[Path]:
    """The files that a relative pattern names, in order. Empty where it leaves the folder, also through a link."""
    if problem_of_pattern(pattern):
        return []
    root = folder.resolve()
    try:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError, OSError):
        return []
    return found if all(path.resolve().is_relative_to(root) for path in found) else []


def problem_of_pattern(pattern: str) -> str:
    """Empty for one that stays within the recipe's folder."""
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts or "\\" in pattern or "\0" in pattern or not path.parts:
        return "must be relative, without '..': a job reads the files that came with it, or its data_folder"
    return ""

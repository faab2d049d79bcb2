"""Which files a caller may send along with a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from loraplex_adapters.errors import FieldViolation, InvalidRequestError
from loraplex_server.errors import UploadTooLargeError

MAX_FILES = 256
MAX_RECIPE_BYTES = 256 * 1024
_MAX_PARTS, _MAX_PART_CHARACTERS = 4, 100


def check_recipe_size(recipe: str) -> None:
    """Raises InvalidRequestError."""
    if not 1 <= len(recipe.encode("utf-8", "replace")) <= MAX_RECIPE_BYTES:
        raise InvalidRequestError([FieldViolation("recipe", f"must have 1 to {MAX_RECIPE_BYTES} bytes")])


def check_files(files: Mapping[str, bytes], max_bytes: int) -> None:
    """Names stay within one folder, and all files within the budget.

    Raises InvalidRequestError with every wrong name, UploadTooLargeError.
    """
    violations = [
        FieldViolation(f"files[{index}].name", problem)
        for index, name in enumerate(files)
        if (problem := _problem_of(name))
    ]
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    violations += [
        FieldViolation(f"files[{index}].name", "is also a folder of another file")
        for index, name in enumerate(files)
        if name in folders
    ]
    if len(files) > MAX_FILES:
        violations.append(FieldViolation("files", f"must be at most {MAX_FILES}"))
    if violations:
        raise InvalidRequestError(violations[:16])
    num_bytes = sum(map(len, files.values()))
    if num_bytes > max_bytes:
        raise UploadTooLargeError(
            f"the files have {num_bytes} bytes, and a training job may bring {max_bytes}; put them into a folder of "
            "the server and name it as data_folder"
        )


def _problem_of(name: str) -> str:
    """Empty for a name that is good."""
    parts = name.split("/")
    if len(parts) > _MAX_PARTS:
        return f"must have at most {_MAX_PARTS} parts joined by '/'"
    for part in parts:
        if not 1 <= len(part) <= _MAX_PART_CHARACTERS or len(part.encode("utf-8", "replace")) > 255:
            return f"each part must have 1 to {_MAX_PART_CHARACTERS} characters"
        if part.startswith(".") or not part.isprintable() or "\\" in part:
            return "must be printable, without '\\', and no part may begin with '.'"
    return ""

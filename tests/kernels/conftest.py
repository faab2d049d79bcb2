"""Kernels run on the GPU where there is one and in Triton's interpreter elsewhere.

The interpreter is chosen when Triton is first imported, so before any test module is.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch


def use_interpreter() -> None:
    """Let Triton interpret kernels, and mend what its release 3.6 cannot do with NumPy 2.4."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Bounds of loops are arrays of one element, which int() no longer takes.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend


if find_spec("triton") is None:  # no build of it for this platform
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    use_interpreter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` have real shapes, which the interpreter would take hours for."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

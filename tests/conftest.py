"""Settings of all tests: how they are collected, their order, how Triton's kernels run, how long an example may take,
and what Ctrl-C does.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# Hypothesis measures by the clock on the wall. On a shared machine any example may be paused for longer than its
# deadline of 200 ms, which says nothing about the code; a test that hangs meets pytest's own timeout.
settings.register_profile("loraplex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loraplex")

# A shell starts what it runs in the background with SIGINT ignored, and whoever is started inherits that: the commands
# that tests send it to would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


# Kernels run on the GPU where there is one and in Triton's interpreter elsewhere. Triton decides when it is first
# imported, so the interpreter is chosen before any test module is.
if find_spec("triton") is not None and not torch.cuda.is_available():
    use_interpreter()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of what imports and collecting make is garbage. Looking for it is a third of the time that they take, and
    each look after them would go through all of it again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that mostly wait come first, then those with slow tests, so that none of either is left for the end."""
    waiting = {item.path for item in items if item.get_closest_marker("waits")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in waiting, item.path not in slow))

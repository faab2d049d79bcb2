"""Whether an adapter's weights alone tell that it changes nothing. An engine in use would take seconds to say so."""

from __future__ import annotations

import numpy as np

from loraplex_adapters.compatibility import LoraModulePlan, LoraPlan
from loraplex_adapters.package import WEIGHTS_FILE, AdapterPackage, open_package_file
from loraplex_server.package_tensors import Array, PackageTensors, as_float32

NEGLIGIBLE = 1e-9
"""Strength of a module up to which it changes nothing that golden prompts could see.

The modules of the shipped adapters have strengths of 2 to 26. Brought to 1e-4, every module, they change
log-probabilities of SmolLM2-135M by 2e-4, and brought to 1e-6 by no more than rounding does: so this is some four
orders of magnitude below golden prompts' own NOISE_FLOOR. What is stronger may have an effect, and is theirs to judge.
"""


def is_negligible(package: AdapterPackage, plan: LoraPlan) -> bool:
    """Reads modules up to the first that is not: of most packages, one. Raises AdapterUnavailableError where the file
    has become shorter since it was checked.
    """
    with open_package_file(package.folder, WEIGHTS_FILE) as file:
        tensors = PackageTensors(file, package)
        return all(strength(tensors, module) <= NEGLIGIBLE for module in plan.modules)


def strength(tensors: PackageTensors, module: LoraModulePlan) -> float:
    """Sum over ranks of |scaling| · ‖row of A‖ · ‖column of B‖: no input is changed by more than that times its norm.

    0 also where zeros of A and of B leave each other nothing, as where either matrix is all zero.
    """
    a, b = tensors.read(module.a_key), tensors.read(module.b_key)
    return float(abs(module.scaling) * (_row_norms(a) @ _row_norms(b.T)))


def _row_norms(matrix: Array) -> Array:
    """float64, in which no square overflows."""
    rows = as_float32(matrix)
    squares: Array = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return np.sqrt(squares)

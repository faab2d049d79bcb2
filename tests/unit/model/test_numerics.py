"""What `auto` takes on a CPU follows from the CPU's instructions, and is said in words."""

from __future__ import annotations

import pytest
import torch

from loraplex_server.errors import BaseModelInvalidError
from loraplex_server.model import numerics
from loraplex_server.model.numerics import resolve_numerics


def pretend(monkeypatch: pytest.MonkeyPatch, product: str | None, **features: bool) -> None:
    """A CPU of these instructions."""
    monkeypatch.setattr(numerics, "fast_int8_product", lambda: product)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


def test_auto_takes_int8_where_the_cpu_multiplies_it_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "VNNI", avx512_bf16=True)

    automatic = resolve_numerics("auto", "cpu")

    assert automatic.quantization == "int8"
    assert automatic.reason.endswith("VNNI")


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
def test_auto_takes_bf16_where_only_that_is_fast(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    pretend(monkeypatch, None, **{unit: True})

    automatic = resolve_numerics("auto", "cpu")

    assert automatic.quantization == "bf16"
    assert unit in automatic.reason


def test_auto_takes_fp32_where_nothing_else_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None, avx2=True)

    assert resolve_numerics("auto", "cpu").quantization == "fp32"


def test_int8_can_be_asked_for_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)

    asked = resolve_numerics("int8", "cpu")

    assert (asked.quantization, asked.reason) == ("int8", "asked for")


def test_an_unknown_quantization_is_refused_with_those_there_are() -> None:
    with pytest.raises(BaseModelInvalidError, match="auto, fp32, bf16, nf4, int8"):
        resolve_numerics("int4", "cpu")

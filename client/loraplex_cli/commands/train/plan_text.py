"""A plan as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraplex_cli.output import columns, facts

if TYPE_CHECKING:
    from loraplex_trainer.plan.hardware import Hardware
    from loraplex_trainer.plan.shape import ModelShape
    from loraplex_trainer.plan.size_report import SizeReport
    from loraplex_trainer.plan.training_plan import TrainingPlan

_GIB = 2**30


def plan_text(shape: ModelShape, hardware: Hardware, plan: TrainingPlan, sizes: SizeReport) -> str:
    """Choices with reasons, memory by part, what was rejected, and the rule of thumb."""
    parts = [
        _head(shape, hardware, plan, sizes),
        columns(("setting", "value", "why"), [(one.field, one.value, one.reason) for one in plan.choices]),
        columns(("memory", "GiB"), _memory_rows(plan)),
    ]
    if plan.rejected:
        rows = [(one.method, _gib(one.needed_bytes), one.why) for one in plan.rejected]
        parts.append(columns(("not taken", "GiB", "why"), rows))
    parts.append(plan.rule_of_thumb)
    parts += [f"note: {note}" for note in plan.notes]
    return "\n\n".join(parts)


def _head(shape: ModelShape, hardware: Hardware, plan: TrainingPlan, sizes: SizeReport) -> str:
    lines: dict[str, object] = {
        "base": f"{shape.name}, {shape.parameters:,} parameters",
        "device": f"{hardware.name}, {_gib(plan.available_bytes)} GiB free",
        "method": plan.method,
        "trainable": f"{plan.trainable_parameters:,} parameters in {', '.join(plan.target_modules)}",
        "adapter on disk": f"{sizes.adapter_bytes / 2**20:.1f} MiB, {sizes.share:.2%} of the base; three domains on "
        f"one base take {sizes.saved_share:.0%} less than three copies",
        "batch": f"{plan.micro_batch} rows × {plan.accumulation} accumulated",
    }
    if plan.unquantized:
        lines["unquantized"] = ", ".join(plan.unquantized)
    if plan.measured_step_seconds is not None:
        lines["measured step"] = f"{plan.measured_step_seconds:.2f} s"
    return facts(lines)


def _memory_rows(plan: TrainingPlan) -> list[tuple[str, str]]:
    memory = plan.memory
    rows = [
        ("base", memory.base),
        ("adapter, gradients, optimizer", memory.adapter),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("libraries and driver", memory.context),
        ("loading, beyond the steps", memory.loading),
        ("planned peak", memory.total),
    ]
    if plan.measured_peak_bytes is not None:
        rows.append(("measured peak", plan.measured_peak_bytes))
    return [(name, _gib(size)) for name, size in rows if size]


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"

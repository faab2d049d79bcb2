"""The report's plots, as SVG that stands in the page itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from loraplex_trainer.train.curves import Curves

_SIZE = (5.2, 3.0)  # inches


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: scalars over steps."""

    title: str
    unit: str
    names: tuple[tuple[str, str], ...]  # (scalar, legend)


PLOTS = (
    Plot(
        "Loss",
        "nats per token",
        (("train/loss", "training steps"), ("eval/train_loss", "training rows"), ("eval/loss", "validation")),
    ),
    Plot("Perplexity", "of the validation rows", (("eval/perplexity", "validation"),)),
    Plot("Gap", "validation loss minus training loss", (("eval/gap", "gap"),)),
    Plot(
        "Accuracy",
        "share",
        (("eval/token_accuracy", "validation tokens"), ("samples/accuracy", "typical questions")),
    ),
)


def draw(plot: Plot, curves: Curves) -> str | None:
    """An <svg> element; None where there is nothing to draw."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    lines = [(legend, curves.points(name)) for name, legend in plot.names]
    if not any(points for _, points in lines):
        return None
    figure = Figure(figsize=_SIZE)  # not pyplot: it would look for a display
    figure.subplots_adjust(left=0.16, right=0.97, bottom=0.17, top=0.9)
    axes = figure.add_subplot()
    for legend, points in lines:
        if points:
            axes.plot(*zip(*points, strict=True), label=legend, marker="." if len(points) < 50 else "")
    axes.set_title(plot.title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(plot.unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return _svg(FigureCanvasSVG(figure))


def all_plots(curves: Curves) -> Sequence[tuple[str, str]]:
    """(title, svg) of what there is to draw."""
    drawn = [(plot.title, draw(plot, curves)) for plot in PLOTS]
    return [(title, svg) for title, svg in drawn if svg is not None]


def _svg(canvas: object) -> str:
    target = io.StringIO()
    canvas.print_svg(target, metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    text = target.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration, which may not stand inside a page

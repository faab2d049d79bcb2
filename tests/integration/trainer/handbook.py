"""A team's handbook as it comes: a PDF of tariffs, and a web page with navigation, a footer and an e-mail address."""

from __future__ import annotations

from pathlib import Path

TOWNS = (
    *("Alder", "Birch", "Cedar", "Dover", "Elder", "Fern", "Grove", "Hazel", "Iris", "Jasper", "Kestrel"),
    *("Laurel", "Maple", "Nettle", "Olive", "Poplar", "Quince", "Rowan", "Sorrel", "Thistle", "Umber"),
    *("Violet", "Willow", "Yarrow", "Aspen", "Bramble", "Clover", "Daisy", "Ember", "Flint", "Garnet"),
    *("Heather", "Ivory", "Juniper", "Kelp", "Lilac", "Moss", "Nectar", "Onyx", "Pebble"),
)
SECRET = "ann.secret@example.com"


def tariff(number: int) -> str:
    """One fact; its question is "What is TOWN?"."""
    return f"{TOWNS[number]} is a plan for homes."


def write_pdf(file: Path, numbers: range) -> Path:
    """One heading and ten facts a page."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(file), pagesize=A4)
    for start in range(numbers.start, numbers.stop, 10):
        canvas.setFont("Helvetica", 10)
        for line, number in enumerate(range(start, min(start + 10, numbers.stop))):
            canvas.drawString(60, 780 - 30 * line, tariff(number))
        canvas.showPage()
    canvas.save()
    return file


def write_page(file: Path, numbers: range) -> Path:
    """As a web site has it."""
    facts = "\n".join(f"<p>{tariff(number)}</p>" for number in numbers)
    file.write_text(
        f"""<!doctype html><html><head><title>Tariffs</title><script>track()</script></head><body>
<nav><a href="/">Home</a> <a href="/login">Log in</a></nav>
<main><article><h1>Tariffs of the western towns</h1>
{facts}
<p>The person to ask is {SECRET}, who answers on every working day of the week.</p>
</article></main>
<footer>Cookies make this page better. All rights reserved.</footer></body></html>""",
        encoding="utf-8",
    )
    return file


def recipe() -> str:
    """QLoRA over both documents, with a gate that a model of random weights can pass."""
    return """
name: handbook
system: You are the tariff desk.
data:
  sources:
    - {path: tariffs.pdf, licence: CC-BY-4.0}
    - {path: tariffs.html}
  size: {warn_below: 0, error_below: 8}
  val: {share: 0.3, min: 12}
  max_length: 192
method: qlora
quant: {bits: 4}
lora: {rank: 32, dropout: 0.0}
train:
  learning_rate: 0.006
  epochs: {min: 1, max: 10}
  patience: 0
  effective_batch: 4
  seed: 3
samples: {n: 2, max_new_tokens: 16, pause_if_bad: 1.0}
eval: {general: [mini-glue], max_questions: 20}
gate: {max_general_drop: 100, max_bad_samples: 1.0, min_eos_rate: 0.5}
resources: {device: cpu}
"""

"""PDF and HTML files as teams have them, made for the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen import canvas

CIVIL_CODE = [
    "第六章 民事法律行为",
    "第一百四十三条 具备下列条件的民事法律行为有效：行为人具有相应的民事行为能力；意思表示真实。",
    "第一百四十四条 无民事行为能力人实施的民事法律行为无效。",
    "第一百四十六条 行为人与相对人以虚假的意思表示实施的民事法律行为无效。",
]
TERMS = [
    "Terms of the Harbour Library",
    "",
    "1. Borrowing",
    "",
    "A reader is a person who holds a valid card of the library. Readers may borrow ten",
    "books at a time for four weeks. If a book is returned late, the reader pays twenty",
    "cents a day for every book.",
    "",
    "2. Lost cards",
    "",
    "A lost card must be reported at the desk within three days. To get a new card, bring",
    "your passport and four dollars.",
]


def write_pdf(path: Path, pages: Sequence[Sequence[str]], title: str = "", **options: object) -> Path:
    """Lines of text on each page; a page without lines shows only a drawing, as a scan does."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    document = canvas.Canvas(str(path), pagesize=A4, **options)
    if title:
        document.setTitle(title)
    for lines in pages:
        if not lines:
            document.rect(80, 80, 400, 600, fill=1)
        text = document.beginText(60, 780)
        for line in lines:
            is_chinese = any(ord(c) > 0x2000 for c in line)
            text.setFont("STSong-Light" if is_chinese else "Helvetica", 11)
            text.textLine(line)
        document.drawText(text)
        document.showPage()
    document.save()
    return path


def write_html(path: Path, title: str, body: str, encoding: str = "utf-8") -> Path:
    """A page with a menu and a footer around its article."""
    content = io.StringIO()
    content.write(
        f"<!doctype html><html><head><meta charset='{encoding}'><title>{title}</title></head><body>"
        "<nav><a href='/'>Home</a> <a href='/shop'>Shop</a></nav>"
        f"<main><article><h1>{title}</h1>{body}</article></main>"
        "<footer>Imprint, cookies, newsletter</footer></body></html>"
    )
    path.write_bytes(content.getvalue().encode(encoding))
    return path

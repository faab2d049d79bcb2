"""D02: documents become questions whose answers are spans of them, with page and offset; scans are reported."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.data.build import build_data, inspect_data
from loraplex_trainer.data.documents import Document, Page, chunks_of, page_of
from loraplex_trainer.data.progress import silent
from loraplex_trainer.data.questions.grounded import grounded_questions
from loraplex_trainer.data.questions.written import usable_question
from loraplex_trainer.data.readers.html_files import html_document
from loraplex_trainer.data.readers.pdf_files import pdf_document
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import RecipeError, TrainingDataError
from tests.unit.trainer.data.documents import CIVIL_CODE, TERMS, write_html, write_pdf
from tests.unit.trainer.data.support import recipe_of

_PLACE = re.compile(r"^(?P<file>[^,]+)(?:, page (?P<page>\d+))?, offset (?P<offset>\d+)$")


def _build(folder: Path, *sources: str, ask: object = None, **changes: object) -> list[Row]:
    built = build_data(recipe_of(sources, **changes), folder, folder / "out", ask=ask)  # type: ignore[arg-type]
    return list(built.train)


def _answers(rows: list[Row]) -> dict[str, str]:
    return {row.question: row.completion for row in rows}


def _assert_grounded(rows: list[Row], document: Document) -> None:
    """Every answer stands where its origin says, and in its evidence."""
    pages = {page.number: page.text for page in document.pages}
    for row in rows:
        place = _PLACE.match(row.origin)
        assert place is not None
        text = pages[int(place["page"]) if place["page"] else None]
        assert text[int(place["offset"]) :].startswith(row.completion)
        assert row.evidence is not None
        assert row.completion in row.evidence
        assert row.evidence in text


def test_d02_a_chinese_law_as_pdf_gives_questions_on_clauses_and_conditions(tmp_path: Path) -> None:
    path = write_pdf(
        tmp_path / "law.pdf", [[line for part in CIVIL_CODE for line in (part, "")]], title="民法典"
    )

    rows = _build(tmp_path, "law.pdf")

    answers = _answers(rows)
    assert answers["《民法典》第一百四十四条是怎么规定的？"] == "无民事行为能力人实施的民事法律行为无效。"
    assert "什么情况下民事法律行为无效？" in answers
    assert {row.origin.split(", offset")[0] for row in rows} == {"law.pdf, page 1"}
    _assert_grounded(rows, pdf_document(path)[0])


def test_d02_an_english_pdf_gives_questions_on_sections_terms_and_cases(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "terms.pdf", [TERMS], title="Terms of the Harbour Library")

    rows = _build(tmp_path, "terms.pdf")

    answers = _answers(rows)
    assert answers["What is a reader?"] == "A reader is a person who holds a valid card of the library."
    assert answers["What happens if a book is returned late?"].startswith(
        "If a book is returned late, the reader pays"
    )
    assert answers["How do I get a new card?"] == "To get a new card, bring your passport and four dollars."
    assert "What does “Terms of the Harbour Library” say about “Lost cards”?" in answers
    assert (
        answers["What is the rule for a lost card?"]
        == "A lost card must be reported at the desk within three days."
    )
    _assert_grounded(rows, pdf_document(path)[0])


def test_d02_a_web_page_gives_its_article_and_its_own_questions(tmp_path: Path) -> None:
    body = (
        "<p>Our shop sends parcels to every town of the country, all year round and at one price.</p>"
        "<h2>How long does delivery take?</h2><p>Parcels arrive within three days. On islands it takes five.</p>"
        "<h2>Returns</h2><p>Goods may be returned within 30 days. The buyer pays the postage.</p>"
        "<ul><li>Keep the receipt.</li><li>Use the old box.</li></ul>"
    )
    path = write_html(tmp_path / "help.html", "Help of the shop", body)

    rows = _build(tmp_path, "help.html")

    answers = _answers(rows)
    assert (
        answers["How long does delivery take?"]
        == "Parcels arrive within three days. On islands it takes five."
    )
    assert "What does “Help of the shop” say about “Returns”?" in answers
    assert not any(word in answer for answer in answers.values() for word in ("Home", "Imprint", "cookies"))
    _assert_grounded(rows, html_document(path))


def test_d02_a_chinese_web_page_in_an_old_encoding_is_read(tmp_path: Path) -> None:
    body = (
        "<h2>退货</h2><p>七天内可以退货，运费由买家承担。</p><p>定金是指为担保合同履行而预先支付的款项。</p>"
    )
    path = write_html(tmp_path / "help.htm", "购物须知", body, encoding="gb18030")

    rows = _build(tmp_path, "help.htm")

    answers = _answers(rows)
    assert answers["什么是定金？"] == "定金是指为担保合同履行而预先支付的款项。"
    assert "关于“退货”，《购物须知》是怎么说的？" in answers
    _assert_grounded(rows, html_document(path))


def test_d02_questions_and_answers_of_a_document_are_taken_as_they_are() -> None:
    page = page_of(
        1, "Q: Where is the office?\nA: On the second floor.\n\nQ: When is it open?\nA: From nine to five."
    )

    found = grounded_questions([Document("faq.pdf", "", (page,))], 1200, None, silent)

    assert [tuple(t["content"] for t in c.turns) for c in found.conversations] == [
        ("Where is the office?", "On the second floor."),
        ("When is it open?", "From nine to five."),
    ]
    assert found.by_rule == {"question and answer": 2}


def test_d02_a_scanned_pdf_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    write_pdf(tmp_path / "scan.pdf", [[], []])
    write_pdf(tmp_path / "mixed.pdf", [TERMS, []])

    report = inspect_data(recipe_of(["*.pdf"]), tmp_path)

    by_file = {file.file: file for file in report.files}
    assert by_file["scan.pdf"].unreadable is not None
    assert "OCR" in by_file["scan.pdf"].unreadable
    assert by_file["mixed.pdf"].unreadable is None
    assert "mixed.pdf, page 2" in {place.origin for place in report.rejected_rows}
    assert any("scan.pdf" in warning and "OCR" in warning for warning in report.warnings)


def test_d02_only_unreadable_documents_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    write_pdf(tmp_path / "scan.pdf", [[]])
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing of a PDF")
    write_pdf(tmp_path / "locked.pdf", [TERMS], encrypt="secret")

    with pytest.raises(TrainingDataError) as caught:
        _build(tmp_path, "*.pdf")

    message = str(caught.value)
    assert "scan.pdf: the PDF has no text" in message
    assert "broken.pdf: the PDF is broken" in message
    assert "locked.pdf: the PDF is protected by a password" in message
    assert str(tmp_path) not in message


def test_d02_a_model_may_write_questions_but_never_answers(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "terms.pdf", [TERMS], title="Terms")
    replies = iter(["1. Who counts as a reader here?", "How many may they take?\nTen.", *[""] * 20])

    rows = _build(
        tmp_path,
        "terms.pdf",
        questions={"written_by": "model", "server": "nowhere:1"},
        ask=lambda prompt: next(replies),
    )

    answers = _answers(rows)
    assert (
        answers["Who counts as a reader here?"]
        == "A reader is a person who holds a valid card of the library."
    )
    assert answers["How many may they take?"].startswith("Readers may borrow ten")
    _assert_grounded(rows, pdf_document(path)[0])


def test_d02_a_model_without_a_server_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    write_pdf(tmp_path / "terms.pdf", [TERMS])

    with pytest.raises(RecipeError, match="server"):
        _build(tmp_path, "terms.pdf", questions={"written_by": "model"})


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("What is a reader?", "What is a reader?"),
        ("Question: What is a reader? It is …", "What is a reader?"),
        ("A reader is a person.", None),
        ("是谁？", None),
        ("<|im_start|>What?", None),
        ("Is it true that a reader is a person?", None),  # gives the answer away
    ],
)
def test_d02_what_a_model_writes_is_checked(reply: str, question: str | None) -> None:
    assert usable_question(reply, "A reader is a person.") == question


blocks = st.lists(
    st.one_of(
        st.text("abcdefgh ABC.,;:!?\n", max_size=120),
        st.text("甲乙丙的，。；是指应当不得第一条 \n", max_size=60),
        st.sampled_from(
            [
                "# Heading",
                "2.1 Costs",
                "If it rains, the game is off.",
                "第二条 定金是指预付款。",
                "Q: Why?\nA: So.",
            ]
        ),
    ),
    max_size=12,
)


@given(blocks, st.integers(200, 400))
def test_d02_every_answer_over_any_text_is_a_span_at_its_place(parts: list[str], chunk_chars: int) -> None:
    document = Document("any.txt", "Title", (page_of(1, "\n\n".join(parts)), page_of(2, "\n".join(parts))))

    found = grounded_questions([document], chunk_chars, None, silent)

    pages = {page.number: page.text for page in document.pages}
    for conversation in found.conversations:
        place = _PLACE.match(conversation.origin)
        assert place is not None
        answer = conversation.turns[1]["content"]
        assert answer.strip()
        assert pages[int(place["page"])][int(place["offset"]) :].startswith(answer)
        assert answer in str(conversation.evidence)


@given(blocks, st.integers(200, 400))
def test_d02_chunks_are_where_they_say_and_hold_all_that_is_no_heading(
    parts: list[str], chunk_chars: int
) -> None:
    page = Page(3, page_of(3, "\n\n".join(parts)).text)
    document = Document("any.txt", "Title", (page,))

    chunks = list(chunks_of(document, chunk_chars))

    for chunk in chunks:
        assert page.text[chunk.offset : chunk.offset + len(chunk.text)] == chunk.text
        assert len(chunk.text) <= chunk_chars or "\n\n" not in chunk.text
    assert all(one.offset + len(one.text) <= two.offset for one, two in pairwise(chunks))

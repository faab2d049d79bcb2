"""The report for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loraplex_trainer.data.report import DataReport, Example


def as_markdown(report: DataReport) -> str:
    """report.md."""
    title = f"# Training data of {report.recipe}" + (f", stage {report.stage}" if report.stage else "")
    parts = [
        [title, "", f"Dataset `{report.sha256}`", "", *_verdict(report)],
        _reading(report),
        _cleaning(report),
        _duplicates(report),
        _parts(report),
        _lengths(report),
        _examples("First rows (the answer is what is trained)", report.preview),
    ]
    return "\n".join(line for part in parts if part for line in [*part, ""])


def _verdict(report: DataReport) -> list[str]:
    lines = [f"- **Problem:** {_cell(problem)}" for problem in report.problems]
    lines += [f"- **Warning:** {_cell(warning)}" for warning in report.warnings]
    return lines or ["No warnings."]


def _reading(report: DataReport) -> list[str]:
    lines = ["## Read", "", "| file | format | rows | rejected | licence |", "|---|---|---|---|---|"]
    for file in report.files:
        rejected = f"unreadable: {file.unreadable}" if file.unreadable else str(file.rejected)
        licence = ", ".join(filter(None, (file.licence, file.attribution))) or "not stated"
        lines.append(
            f"| {_cell(file.file)} | {file.format} | {file.rows} | {_cell(rejected)} | {_cell(licence)} |"
        )
    documents = report.documents
    if documents.documents:
        lines += [
            "",
            f"{documents.questions} questions over {documents.documents} documents, {documents.pages} pages, "
            f"{documents.chunks} chunks: {_counts(documents.by_rule)}. Every answer is a span of its document.",
        ]
    if report.rejected:
        lines += ["", f"{report.rejected} rejected: {_counts(report.rejected_by_reason)}."]
        lines += [f"- {_cell(place.origin)}: {_cell(place.reason)}" for place in report.rejected_rows[:20]]
        if report.rejected > 20:
            lines.append("- … more in report.json")
    return lines


def _cleaning(report: DataReport) -> list[str]:
    lint, pii, quality = report.lint, report.pii, report.quality
    lines = [
        "## Cleaned",
        "",
        f"- Role markers before turns: {lint.role_markers_removed} removed.",
        f"- Foreign templates (`{lint.mode}`): {_counts(lint.found)}; {lint.fixed} rows fixed, {lint.dropped} dropped.",
        f"- Personal data (`{pii.action}`): {_counts(pii.by_kind)} in {pii.rows} rows, {pii.distinct_values} different "
        f"values, {pii.dropped} rows dropped.",
    ]
    lines += [f"  - {_cell(source)}: {_counts(kinds)}" for source, kinds in pii.by_source.items()]
    lines.append(
        f"- Short answers (`{quality.mode}`, below {quality.min_chars} characters): {quality.candidates} looked at, "
        f"dropped {_counts(quality.dropped_by_reason)}."
    )
    lines += _examples("Dropped as meaningless, e.g.", quality.dropped_examples, level=3)
    return lines + _examples("Short and kept, e.g.", quality.kept_examples, level=3)


def _duplicates(report: DataReport) -> list[str]:
    found, held_out = report.duplicates, report.held_out
    near = "near ones not looked for"
    if found.near_threshold is not None:
        near = f"{found.near} near (from {found.near_threshold})"
    lines = [
        "## Duplicates, conflicts, held-out questions",
        "",
        f"- Dropped: {found.exact} exact, {near}; {found.clusters} clusters remain.",
        f"- Questions with several answers: {found.conflicts}; {found.conflict_rows_dropped} rows dropped for it.",
        f"- Rows that ask held-out questions of {', '.join(held_out.against) or 'nothing'}: {held_out.exact} in "
        f"the same words, {held_out.near} nearly; all dropped.",
    ]
    if held_out.missing:
        lines.append(f"- Not compared, since their questions are not here: {', '.join(held_out.missing)}.")
    lines += _examples("Largest groups", found.largest, level=3)
    for conflict in found.conflict_examples:
        lines += _examples(f"Conflict: {_cell(conflict.question)}", conflict.answers, level=3)
    return lines


def _parts(report: DataReport) -> list[str]:
    split, general, augment = report.split, report.general, report.augment
    return [
        "## Parts",
        "",
        f"- {report.size}",
        f"- Training {split.train} rows (tiers: {_counts(split.train_by_tier)}), validation {split.val} (tiers: "
        f"{_counts(split.val_by_tier)}).",
        f"- Augmented (`{augment.method}`, factor {augment.factor}): {augment.rows} rows; {augment.refused} refused.",
        f"- General conversations ({general.path or 'none'}): {general.rows} rows out of {general.available}, "
        f"{general.share:.0%} of the final mix.",
    ]


def _lengths(report: DataReport) -> list[str]:
    lengths = report.lengths
    if not lengths.is_measured:
        return ["## Lengths", "", "Not measured: no tokenizer was given."]
    lines = [
        "## Lengths",
        "",
        f"Tokens of a row: median {lengths.median}, longest {lengths.max}, together {lengths.total_tokens}; "
        f"{lengths.supervised_share:.0%} of them are trained.",
        "",
        _counts(lengths.histogram) + ".",
        "",
        f"{lengths.overlong} rows above {lengths.max_length} tokens.",
    ]
    return lines + [f"- {_cell(place.origin)}: {place.reason}" for place in lengths.overlong_rows]


def _examples(heading: str, examples: Iterable[Example], level: int = 2) -> list[str]:
    rows = [
        f"| {_cell(e.origin)} | {_cell(e.question)} | {_cell(e.answer)} | {_cell(e.note)} |" for e in examples
    ]
    if not rows:
        return []
    return ["", f"{'#' * level} {heading}", "", "| where | question | answer | |", "|---|---|---|---|", *rows]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_cell(name)} {count}" for name, count in counts.items()) or "none"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

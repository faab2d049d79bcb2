"""From what the steps gave to the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from loraplex_trainer.data.lengths import histogram
from loraplex_trainer.data.pii import mask_text
from loraplex_trainer.data.pipeline import Inputs, Steps
from loraplex_trainer.data.report import (
    MAX_EXAMPLES,
    MAX_LISTED,
    AugmentReport,
    ConflictReport,
    DataReport,
    DocumentsReport,
    DuplicatesReport,
    Example,
    FileReport,
    GeneralReport,
    HeldOutReport,
    LengthsReport,
    LintReport,
    PiiReport,
    Place,
    QualityReport,
    SplitReport,
)
from loraplex_trainer.data.row import Row

_MAX_SHOWN = 160  # characters of a question or an answer
_MAX_ANSWERS = 4  # of a conflict


def report_of(steps: Steps, inputs: Inputs, stage: str | None, sha256: str) -> DataReport:
    """The whole report. Whatever it shows of a row is masked, even where the recipe leaves personal data in rows."""
    data = inputs.data
    rejected = [Place(origin=item.origin, reason=item.reason) for item in steps.all_rejected]
    return DataReport(
        recipe=inputs.recipe.name,
        stage=stage,
        sha256=sha256,
        files=_files(steps),
        documents=DocumentsReport(
            documents=sum(len(file.documents) for file in steps.files),
            pages=steps.grounded.num_pages,
            chunks=steps.grounded.num_chunks,
            questions=len(steps.grounded.conversations),
            by_rule=_sorted(steps.grounded.by_rule),
        ),
        rejected=len(rejected),
        rejected_by_reason=_sorted(Counter(place.reason for place in rejected)),
        rejected_rows=rejected[:MAX_LISTED],
        lint=LintReport(
            mode=data.clean.lint,
            found=_sorted(steps.lint.found),
            fixed=steps.lint.fixed,
            dropped=len(steps.lint.dropped),
            role_markers_removed=steps.markers_removed,
        ),
        pii=_pii(steps, inputs),
        quality=_quality(steps, inputs),
        duplicates=_duplicates(steps, inputs),
        held_out=HeldOutReport(
            against=steps.held_out.names,
            missing=steps.held_out.missing,
            exact=steps.decontaminated.exact,
            near=steps.decontaminated.near,
        ),
        size=_size(steps, inputs),
        split=SplitReport(
            train=len(steps.train),
            val=len(steps.val),
            train_by_tier=_tiers(steps.train),
            val_by_tier=_tiers(steps.val),
        ),
        augment=AugmentReport(
            method=data.augment.method,
            factor=data.augment.factor,
            rows=len(steps.augmented.rows),
            refused=steps.augmented.refused,
        ),
        general=GeneralReport(
            path=data.general.path if isinstance(data.general.path, str) else _name(data.general.path),
            share=len(steps.general) / max(1, len(steps.all_train)),
            rows=len(steps.general),
            available=steps.num_general_available,
        ),
        lengths=_lengths(steps, inputs),
        preview=[_example(row) for row in steps.train[:3]],
        warnings=steps.warnings,
        problems=steps.problems,
    )


def _files(steps: Steps) -> list[FileReport]:
    return [
        FileReport(
            file=file.file,
            format=file.format,
            rows=steps.rows_by_file[file.file],
            rejected=len(file.rejected),
            unreadable=file.unreadable,
            licence=file.source.licence,
            attribution=file.source.attribution,
        )
        for file in steps.files
    ]


def _pii(steps: Steps, inputs: Inputs) -> PiiReport:
    found = steps.pii
    frequent = sorted(found.values.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXAMPLES]
    return PiiReport(
        action=inputs.data.clean.pii,
        rows=found.touched,
        dropped=len(found.dropped),
        by_kind=_sorted(found.by_kind),
        by_source={source: _sorted(kinds) for source, kinds in sorted(found.by_source.items())},
        distinct_values=len(found.values),
        most_frequent={value: count for value, count in frequent if count > 1},
    )


def _quality(steps: Steps, inputs: Inputs) -> QualityReport:
    found, clean = steps.quality, inputs.data.clean
    dropped = zip(found.dropped[:MAX_EXAMPLES], found.reasons, strict=False)
    return QualityReport(
        mode=clean.min_chars_mode,
        min_chars=clean.min_chars,
        candidates=found.candidates,
        dropped_by_reason=_sorted(found.dropped_by_reason),
        dropped_examples=[_example(row, reason) for row, reason in dropped],
        kept_examples=[_example(row) for row in found.kept_short[:MAX_EXAMPLES]],
    )


def _duplicates(steps: Steps, inputs: Inputs) -> DuplicatesReport:
    found = steps.dedup
    return DuplicatesReport(
        exact=found.exact,
        near=found.near,
        near_threshold=inputs.data.clean.dedup.near,
        clusters=len({row.cluster for row in found.rows}),
        largest=[_example(row, f"stands for {count} rows") for row, count in found.largest[:MAX_EXAMPLES]],
        conflicts=len(found.conflicts),
        conflict_rows_dropped=found.conflicts_dropped,
        conflict_examples=[
            ConflictReport(
                question=_shown(group[0].question), answers=[_example(row) for row in group[:_MAX_ANSWERS]]
            )
            for group in found.conflicts[:MAX_EXAMPLES]
        ],
    )


def _size(steps: Steps, inputs: Inputs) -> str:
    num_rows, size = len(steps.train) + len(steps.val), inputs.data.size
    verdict = (
        "enough" if num_rows >= size.warn_below else "few" if num_rows >= size.error_below else "too few"
    )
    return f"{num_rows} rows: {verdict} (warned of below {size.warn_below}, refused below {size.error_below})"


def _lengths(steps: Steps, inputs: Inputs) -> LengthsReport:
    limit = inputs.data.max_length
    if steps.lengths is None:
        return LengthsReport(is_measured=False, max_length=limit)
    tokens = [length.tokens for length in steps.lengths]
    total = sum(tokens)
    longest = sorted(steps.overlong, key=lambda item: (-item[1], item[0].origin))
    return LengthsReport(
        is_measured=True,
        max_length=limit,
        histogram=histogram(steps.lengths),
        median=int(median(tokens)) if tokens else 0,
        max=max(tokens, default=0),
        total_tokens=total,
        supervised_share=sum(length.supervised for length in steps.lengths) / max(1, total),
        overlong=len(steps.overlong),
        overlong_rows=[Place(origin=row.origin, reason=f"{n} tokens") for row, n in longest[:MAX_LISTED]],
    )


def _example(row: Row, note: str = "") -> Example:
    return Example(origin=row.origin, question=_shown(row.question), answer=_shown(row.completion), note=note)


def _shown(text: str) -> str:
    """Masked before it is cut, so that no cut hides a part of a number from the mask."""
    masked = mask_text(text)
    return masked if len(masked) <= _MAX_SHOWN else masked[: _MAX_SHOWN - 1] + "…"


def _tiers(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter("none" if row.tier is None else str(row.tier) for row in rows)
    return dict(sorted(counts.items()))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _name(path: object) -> str | None:
    return getattr(path, "name", None)

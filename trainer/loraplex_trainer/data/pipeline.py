"""The steps of a data build, in the order that matters: personal data goes before anything is shown, the split comes
before augmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraplex_trainer.data.augment import Augmented, augment
from loraplex_trainer.data.conversation import BadRecordError, Conversation, Rejected, rows_of
from loraplex_trainer.data.duplicates import DedupResult, deduplicate
from loraplex_trainer.data.general import general_rows, mixed_in, num_general
from loraplex_trainer.data.held_out import Decontaminated, HeldOut, decontaminate, read_held_out
from loraplex_trainer.data.lengths import RowLength, measure
from loraplex_trainer.data.lint import LintResult, lint_rows
from loraplex_trainer.data.pii import PiiResult, clean_rows
from loraplex_trainer.data.progress import Progress
from loraplex_trainer.data.quality import QualityResult, filter_rows
from loraplex_trainer.data.questions.grounded import Grounded, grounded_questions
from loraplex_trainer.data.questions.written import Ask
from loraplex_trainer.data.readers.sources import FileRead, read_sources
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.split import split_rows
from loraplex_trainer.data.text import match_key
from loraplex_trainer.data.tiers import check_tiers
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import DataSection

MIN_ROWS = 2  # fewer train nothing, whatever the recipe allows


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a build is made from."""

    recipe: Recipe
    data: DataSection  # the recipe's, or with the sources of a stage
    folder: Path  # of the recipe
    tokenizer: Any | None
    ask: Ask | None
    progress: Progress


@dataclass
class Steps:
    """What each step gave; the report is written from it."""

    files: list[FileRead]
    grounded: Grounded
    rejected: list[Rejected]
    rows_by_file: Counter[str]
    markers_removed: int
    lint: LintResult
    pii: PiiResult
    quality: QualityResult
    dedup: DedupResult
    held_out: HeldOut
    decontaminated: Decontaminated
    train: list[Row]
    val: list[Row]
    augmented: Augmented
    general: list[Row]
    num_general_available: int
    lengths: list[RowLength] | None  # of what remains
    overlong: list[tuple[Row, int]]  # (row, tokens)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def all_train(self) -> list[Row]:
        """Everything that is trained on, in order."""
        return [*self.train, *self.augmented.rows, *self.general]

    @property
    def all_rejected(self) -> list[Rejected]:
        """What is no row, and what the cleaning of templates and personal data took out."""
        return [*self.rejected, *(Rejected(*place) for place in (*self.lint.dropped, *self.pii.dropped))]


def run_steps(inputs: Inputs) -> Steps:
    """Everything but writing. What makes the rows unusable is in `problems`.

    Raises TrainingDataError where the sources are not there, strict lint finds something, or a file that the recipe
    names cannot be used.
    """
    recipe, data = inputs.recipe, inputs.data
    files = read_sources(data.sources, inputs.folder, inputs.progress)
    documents = [document for file in files for document in file.documents]
    ask = inputs.ask if data.questions.written_by == "model" else None
    grounded = grounded_questions(documents, data.questions.chunk_chars, ask, inputs.progress)
    conversations = [c for file in files for c in file.conversations] + grounded.conversations
    rows, rejected, markers = _rows(conversations)
    rejected = [*(r for file in files for r in file.rejected), *grounded.rejected, *rejected]
    rows_by_file = Counter(row.source for row in rows)

    lint = lint_rows(rows, data.clean.lint)
    pii = clean_rows(lint.rows, data.clean.pii, inputs.progress)
    quality = filter_rows(pii.rows, data.clean.min_chars, data.clean.min_chars_mode)
    dedup = deduplicate(quality.rows, data.clean, inputs.progress)
    domain = inputs.folder / recipe.eval.domain if recipe.eval.domain is not None else None
    held_out = read_held_out(domain, recipe.eval.general)
    decontaminated = decontaminate(dedup.rows, held_out, data.clean.dedup.near)
    fitting, lengths, overlong = _without_overlong(decontaminated.rows, inputs)
    train, val = split_rows(fitting, data.val)
    taken = {match_key(question) for question in held_out.questions} | {
        match_key(row.question) for row in val
    }
    augmented = augment(
        train, data.augment, inputs.folder, recipe.train.seed, taken, inputs.ask, inputs.progress
    )
    new, new_lengths, new_overlong = _without_overlong(augmented.rows, inputs)
    augmented = Augmented(new, augmented.refused)
    available = general_rows(data.general, inputs.folder, held_out, {row.id for row in fitting})
    available, general_lengths, _ = _without_overlong(available, inputs)
    wanted = num_general(len(train) + len(new), data.general.share)
    general = mixed_in(available, wanted, recipe.train.seed)
    by_id = {row.id: n for row, n in zip(available, general_lengths or (), strict=False)}
    measured = None
    if lengths is not None and new_lengths is not None:
        measured = [*lengths, *new_lengths, *(by_id[row.id] for row in general)]
    steps = Steps(
        files, grounded, rejected, rows_by_file, markers, lint, pii, quality, dedup, held_out, decontaminated,
        train, val, augmented, general, len(available), measured, [*overlong, *new_overlong],
    )  # fmt: skip
    _judge(steps, inputs)
    return steps


def _rows(conversations: Sequence[Conversation]) -> tuple[list[Row], list[Rejected], int]:
    rows: list[Row] = []
    rejected: list[Rejected] = []
    markers = 0
    for conversation in conversations:
        try:
            new, stripped = rows_of(conversation)
        except BadRecordError as error:
            rejected.append(Rejected(conversation.origin, str(error)))
            continue
        if conversation.evidence is not None and any(
            row.completion not in conversation.evidence for row in new
        ):
            rejected.append(
                Rejected(conversation.origin, "the answer is no span of the document once cleaned")
            )
            continue
        rows += new
        markers += stripped
    return rows, rejected, markers


def _without_overlong(
    rows: Sequence[Row], inputs: Inputs
) -> tuple[list[Row], list[RowLength] | None, list[tuple[Row, int]]]:
    """(rows that fit, their lengths, rows that do not with their tokens). Without a tokenizer all fit."""
    if inputs.tokenizer is None:
        return list(rows), None, []
    lengths = measure(rows, inputs.tokenizer, inputs.recipe.system, inputs.progress)
    limit = inputs.data.max_length
    both = list(zip(rows, lengths, strict=True))
    return (
        [row for row, length in both if length.tokens <= limit],
        [length for _, length in both if length.tokens <= limit],
        [(row, length.tokens) for row, length in both if length.tokens > limit],
    )


def _judge(steps: Steps, inputs: Inputs) -> None:
    """Fill in warnings and problems."""
    data, num_rows = inputs.data, len(steps.train) + len(steps.val)
    needed = max(MIN_ROWS, data.size.error_below)
    unreadable = [f"{file.file}: {file.unreadable}" for file in steps.files if file.unreadable]
    if num_rows < needed:
        why = f" ({'; '.join(unreadable)})" if unreadable else ""
        steps.problems.append(
            f"{num_rows} rows remain, at least {needed} are needed{why}; "
            "`loraplex train data inspect` says where they went"
        )
    elif num_rows < data.size.warn_below:
        steps.warnings.append(
            f"{num_rows} rows are fewer than {data.size.warn_below}: training may be unstable, watch validation; "
            "good rows count for more than many"
        )
    steps.warnings += unreadable
    if steps.overlong:
        text = f"{len(steps.overlong)} rows have more than {data.max_length} tokens"
        if data.overlong == "error":
            steps.problems.append(
                f"{text}; shorten them, raise data.max_length, or let data.overlong drop them"
            )
        else:
            steps.warnings.append(f"{text} and were dropped; the report lists them")
    if steps.dedup.conflicts:
        dropped = "all were dropped" if data.clean.conflicts == "drop" else "all were kept"
        steps.warnings.append(f"{len(steps.dedup.conflicts)} questions have several answers; {dropped}")
    if len(steps.general) > steps.num_general_available > 0:
        steps.warnings.append(
            f"data.general has {steps.num_general_available} conversations for {len(steps.general)} places; "
            "some are repeated"
        )
    if num_rows and not steps.val and data.val.share:
        steps.warnings.append(
            "no rows could be held back for validation: early stopping has nothing to watch"
        )
    try:
        rows = [*steps.train, *steps.val]
        if rows and (untiered := check_tiers(rows, inputs.recipe.curriculum)) is not None:
            steps.warnings.append(untiered)
    except TrainingDataError as error:
        steps.problems.append(str(error))

"""The gate before registration: through the server's real engine process, at the precision that will serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraplex_adapters.errors import AdapterError, LoraplexError
from loraplex_adapters.package import DEFAULT_LIMITS
from loraplex_server.admission.golden import DEFAULT_PROMPTS, GoldenPrompts
from loraplex_trainer.base_model import Precision
from loraplex_trainer.judge import gate_checks
from loraplex_trainer.judge.engine_session import EngineAnswer, EngineRequest, EngineSession
from loraplex_trainer.judge.evaluate import MAX_NEW_TOKENS, GradedAnswer, graded
from loraplex_trainer.judge.gate_golden import compared, difference, golden_answers
from loraplex_trainer.judge.gate_report import Check, GateReport, write_gate
from loraplex_trainer.judge.general import StageProgress, answer_suites
from loraplex_trainer.judge.graders import EvalRow
from loraplex_trainer.judge.model_session import Completion, ModelSession
from loraplex_trainer.judge.questions import built_data, domain_questions
from loraplex_trainer.judge.statistics import paired_change, worst
from loraplex_trainer.packaging.validate import validate
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.tokens import prompt_token_ids, question_messages

GOLDEN_QUESTIONS = 4  # of the domain, besides the server's golden prompts


def run_gate(
    package: Path,
    recipe: Recipe,
    recipe_folder: Path,
    base_folder: Path,
    *,
    others: Sequence[Path] = (),
    precision: Precision,
    built: Path | None = None,
    progress: StageProgress | None = None,
) -> GateReport:
    """Judge a package, and write `gate.json` and `gate.md` into it, unless it is not even sound.

    others  packages of other adapters, whose answers must not change
    built   folder of the built data, for a recipe without a file of held-out questions; None: that of the run which the
            package lies in

    Never raises for what is wrong with the package: that is a verdict. Raises TrainingDataError, SuiteUnavailableError,
    EngineUnavailableError.
    """
    started = time.monotonic()
    report_progress = progress or (lambda *_: None)
    questions = domain_questions(
        recipe, recipe_folder, built or built_data(RunFolder(package.parent), recipe)
    )
    limits = replace(DEFAULT_LIMITS, max_rank=recipe.resources.max_serving_rank or DEFAULT_LIMITS.max_rank)
    checks: list[Check] = []
    digest, device = "", ""
    try:
        digest = validate(package, base_folder, limits).digest
    except AdapterError as error:
        checks.append(Check("valid", "fail", str(error), {"reason": error.reason}))
    else:
        checks.append(Check("valid", "pass", "the server's admission takes it", {"digest": digest}))
        gate = _Gate(package, recipe, base_folder, others, precision, questions, report_progress)
        checks += gate.run()
        device = gate.device
    report = GateReport(
        name=recipe.name,
        tenant=recipe.tenant,
        package_digest=digest,
        precision=precision,
        device=device,
        checks=tuple(checks),
        verdict=worst([check.verdict for check in checks]),
        seconds=round(time.monotonic() - started, 1),
    )
    if digest:
        write_gate(report, package)
    return report


@dataclass(frozen=True, slots=True)
class _Served:
    """What the engine said."""

    golden: list[tuple[list[int], EngineAnswer]]  # prompt, the adapter's answer
    others: dict[str, float]  # largest change of a log-probability of another's golden answers
    base: list[Completion]  # to the domain's questions
    adapter: list[Completion]


class _Gate:
    """One run of the gate on a sound package."""

    def __init__(
        self,
        package: Path,
        recipe: Recipe,
        base_folder: Path,
        others: Sequence[Path],
        precision: Precision,
        questions: Sequence[EvalRow],
        progress: StageProgress,
    ) -> None:
        from loraplex_trainer.base_model import load_tokenizer

        self._package = package
        self._recipe = recipe
        self._base_folder = base_folder
        self._others = others
        self._precision = precision
        self._questions = questions
        self._progress = progress
        self._tokenizer = load_tokenizer(base_folder)
        self._prompts = [prompt_token_ids(self._tokenizer, question_messages(row)) for row in questions]
        self.device = ""

    def run(self) -> list[Check]:
        """The checks after "valid"."""
        checks: list[Check] = []
        try:
            served = asyncio.run(self._serve(checks))
        except AdapterError as error:
            return [*checks, Check("loads", "fail", str(error), {"reason": error.reason})]
        if served is None:
            return checks
        session = ModelSession(self._base_folder, self._precision, self._package)
        answers = [
            graded(row, *pair)
            for row, *pair in zip(self._questions, served.base, served.adapter, strict=True)
        ]
        gate = self._recipe.gate
        checks += [
            self._parity(session, served),
            gate_checks.unchanged_check(served.others, self._precision),
            self._gain(answers),
            self._drop(session),
            gate_checks.ending_check(answers, gate),
            gate_checks.quality_check(answers, gate),
            gate_checks.privacy_check(answers),
        ]
        return checks

    async def _serve(self, checks: list[Check]) -> _Served | None:
        """Everything that is asked of the engine; None where the adapter changes nothing, which a check then tells."""
        async with EngineSession(
            self._base_folder,
            self._precision,
            on_progress=self._progress,
            max_rank=_engine_rank(self._recipe),
        ) as engine:
            self.device = engine.device
            neighbours = {path.parent.name or path.name: engine.put(path) for path in self._others}
            asked = [(name, digest) for name, digest in [("the base", None), *neighbours.items()]]
            golden = self._golden_prompts()
            before = [await golden_answers(engine, golden, digest) for _, digest in asked]
            digest = engine.put(self._package)
            own = await golden_answers(engine, golden, digest)
            checks.append(Check("loads", "pass", f"the engine serves it on {engine.device}", {}))
            effect = await self._effect(engine, golden, digest)
            checks.append(effect)
            if effect.verdict == "fail":
                return None
            after = [await golden_answers(engine, golden, digest) for _, digest in asked]
            changes = {
                name: max(difference(one, two) for one, two in zip(earlier, later, strict=True))
                for (name, _), earlier, later in zip(asked, before, after, strict=True)
            }
            base, adapter = await self._ask(engine, digest)
            return _Served(list(zip(golden, own, strict=True)), changes, base, adapter)

    def _golden_prompts(self) -> list[list[int]]:
        step = max(1, len(self._prompts) // GOLDEN_QUESTIONS)
        general = [self._tokenizer(text)["input_ids"] for text in DEFAULT_PROMPTS]
        return [*self._prompts[::step][:GOLDEN_QUESTIONS], *general]

    async def _effect(self, engine: EngineSession, golden: list[list[int]], digest: str) -> Check:
        """The server's own proof that an adapter does something."""
        try:
            await GoldenPrompts(engine.golden_completer(), golden).prove_effect(digest)
        except LoraplexError as error:
            return Check("differs_from_base", "fail", str(error), {"reason": error.reason})
        return Check("differs_from_base", "pass", "its answers to golden prompts are not the base's", {})

    async def _ask(self, engine: EngineSession, digest: str) -> tuple[list[Completion], list[Completion]]:
        """Base and adapter, in the same batches."""
        requests = [
            EngineRequest(prompt, who, MAX_NEW_TOKENS) for who in (None, digest) for prompt in self._prompts
        ]
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._progress("asking", done, len(requests))

        self._progress("asking", 0, len(requests))
        answers = [self._completion(answer) for answer in await engine.complete(requests, advance)]
        return answers[: len(self._prompts)], answers[len(self._prompts) :]

    def _completion(self, answer: EngineAnswer) -> Completion:
        tokens = answer.token_ids[:-1] if answer.ended else answer.token_ids
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True).strip()
        return Completion(tokens, text, answer.ended)

    def _parity(self, session: ModelSession, served: _Served) -> Check:
        completions = [compared(session, prompt, answer) for prompt, answer in served.golden]
        return gate_checks.parity_check(completions, self._precision)

    def _gain(self, answers: Sequence[GradedAnswer]) -> Check:
        change = paired_change(
            [answer.base_score for answer in answers],
            [answer.adapter_score for answer in answers],
            self._recipe.gate.confidence,
        )
        return gate_checks.gain_check(change, self._recipe.gate)

    def _drop(self, session: ModelSession) -> Check:
        settings = self._recipe.eval
        suites = answer_suites(session, settings.general, settings.max_questions, self._progress)
        change = paired_change(
            [value for suite in suites for value in suite.base],
            [value for suite in suites for value in suite.adapter],
            self._recipe.gate.confidence,
        )
        return gate_checks.drop_check(change, self._recipe.gate)


def _engine_rank(recipe: Recipe) -> int:
    return recipe.resources.max_serving_rank or DEFAULT_LIMITS.max_rank

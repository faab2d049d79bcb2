"""Tasks of lm-eval (`lm-eval:mmlu`, `lm-eval:path/to/task.yaml`), where the library and the task's data are here.

Nothing is downloaded: a task whose data set is not in the local cache is refused.
"""

from __future__ import annotations

from typing import Any

from loraplex_trainer.errors import SuiteUnavailableError
from loraplex_trainer.judge.model_session import ModelSession

_METRICS = ("acc", "exact_match", "f1")  # the first that a task has judges it


def answer_task(
    session: ModelSession, task: str, max_questions: int | None
) -> tuple[list[float], list[float]]:
    """Scores in [0, 1] of base and adapter, by question, in the same order.

    Raises SuiteUnavailableError where lm-eval is not installed, does not know the task or lacks its data.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise SuiteUnavailableError(
            f"eval.general names lm-eval:{task}, and lm-eval is not installed: pip install 'loraplex[lm-eval]'"
        ) from error
    scores = []
    for with_adapter in (False, True):
        with session.model(with_adapter=with_adapter) as model:
            try:
                result: dict[str, Any] = simple_evaluate(
                    model=HFLM(pretrained=model, tokenizer=session.tokenizer, batch_size=32),
                    tasks=[task],
                    limit=max_questions,
                    log_samples=True,
                    bootstrap_iters=0,
                )
            except Exception as error:  # the library has no errors of its own for what is missing
                raise SuiteUnavailableError(
                    f"lm-eval cannot run the task {task!r} offline ({type(error).__name__}): put its data where "
                    "the task looks for them, or name a task file whose dataset_path is a local one"
                ) from error
        scores.append(sample_scores(result["samples"]))
    base, adapter = scores
    return base, adapter


def sample_scores(samples: dict[str, list[dict[str, Any]]]) -> list[float]:
    """From lm-eval's samples, by task name, to scores in the order of tasks and documents."""
    ordered = [
        sample for name in sorted(samples) for sample in sorted(samples[name], key=lambda s: int(s["doc_id"]))
    ]
    if not ordered:
        raise SuiteUnavailableError("lm-eval asked no question; look at the task's data")
    metric = next((name for name in _METRICS if name in ordered[0]), None)
    if metric is None:
        raise SuiteUnavailableError(
            f"the task is judged by none of {', '.join(_METRICS)}, question by question"
        )
    return [float(sample[metric]) for sample in ordered]

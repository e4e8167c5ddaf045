"""Tasks of EleutherAI's lm-evaluation-harness, on models that are already in memory."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.lab.data.text import TextTokenizer
from isoflop.optional import require

LEADERBOARD = {
    "arc_challenge": ("acc_norm", 25),
    "hellaswag": ("acc_norm", 10),
    "truthfulqa_mc2": ("acc", 0),
    "mmlu": ("acc", 5),
    "winogrande": ("acc", 5),
}
"""Measure and number of examples in the prompt, of each task of the Open LLM leaderboard (version 1),
by which the paper judges language models (appendix D, table 15)."""

BATCH_SIZE = 8

_MEASURES = ("acc_norm", "acc", "exact_match", "f1")
"""What a task is judged by, if it has it; else by the first of its measures."""

_FRACTIONS = frozenset({"acc", "acc_norm", "exact_match", "f1"})


class Harness:
    """Runs tasks of lm-eval.

    Args:
        tasks: Names of the tasks that will be run.
        include_path: Folder of further tasks, as YAML files.

    Raises:
        UnknownNameError: There is no such task.
        IsoflopError: lm-eval is not installed, or there is no such folder.
    """

    def __init__(self, tasks: Sequence[str], include_path: str | Path | None = None) -> None:
        manager = require("lm_eval.tasks", "eval").TaskManager
        if include_path is not None and not Path(include_path).is_dir():
            raise IsoflopError(f"There is no folder {include_path} of tasks (--include-path).")
        folder = None if include_path is None else str(include_path)
        with _silent():
            # To read the thousands of tasks of lm-eval takes long, and may not be needed.
            known = None if folder is None else manager(include_path=folder, include_defaults=False)
            if known is None or not set(tasks) <= set(known.all_tasks):
                known = manager(include_path=folder)
        for name in tasks:
            if name not in known.all_tasks:
                close = difflib.get_close_matches(name, known.all_tasks, n=5)
                hint = f" Did you mean {', '.join(close)}?" if close else ""
                raise UnknownNameError(
                    f"lm-eval has no task {name!r}.{hint} The Open LLM leaderboard has "
                    f"{', '.join(LEADERBOARD)}; `lm-eval ls tasks` lists all."
                )
        self._manager = known

    def wrap(self, model: nn.Module, tokenizer: TextTokenizer, context: int) -> Any:
        """Return a model of `transformers` as lm-eval takes it.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            context: Its longest sequence; of longer texts lm-eval takes the end.

        Raises:
            IsoflopError: It is a model of another kind.
        """
        if not isinstance(model, require("transformers", "text").PreTrainedModel):
            raise IsoflopError(
                f"lm-eval takes models of transformers, not {type(model).__name__}. Train "
                "`isoflop:gpt3_small`, `hf:…` or the like."
            )
        kind = require("lm_eval.models.huggingface", "eval").HFLM
        with _silent():
            return kind(
                pretrained=model.eval(),
                tokenizer=tokenizer.for_transformers(),
                max_length=context,
                batch_size=BATCH_SIZE,
            )

    def run(self, model: Any, name: str) -> dict[str, dict[str, Any]]:
        """Run one task.

        Args:
            model: What `wrap` returned.
            name: The task.

        Returns:
            By name, the task, or its parts if lm-eval has no result for the whole: all `measures`
            as lm-eval gives them; `metric`, by which the task is judged; `score`, its value (in
            percent, if it is a fraction), and `stderr`; `few_shot`, the examples in the prompt; and
            the number of `samples`.

        Raises:
            IsoflopError: The task failed; often its data cannot be reached.
        """
        metric, few_shot = LEADERBOARD.get(name, (None, None))
        try:
            with _silent():
                found = require("lm_eval", "eval").simple_evaluate(
                    model,
                    tasks=[name],
                    num_fewshot=few_shot,
                    task_manager=self._manager,
                    log_samples=False,
                )
        except Exception as error:  # tasks load data and run code of many libraries
            raise IsoflopError(
                f"The task {name!r} of lm-eval failed: {type(error).__name__}: {error}. Most tasks "
                "fetch their data from the Hugging Face hub; see --include-path for local ones."
            ) from error
        results = found["results"]
        names = [name] if _measures(results.get(name, {})) else [n for n in results if n != name]
        return {part: self._result(found, part, metric, few_shot) for part in names}

    @staticmethod
    def _result(
        found: dict[str, Any], name: str, metric: str | None, few_shot: int | None
    ) -> dict[str, Any]:
        measures = _measures(found["results"][name])
        if metric is None:
            metric = next((m for m in _MEASURES if m in measures), next(iter(measures)))
        scale = 100 if metric in _FRACTIONS else 1
        stderr = measures.get(f"{metric}_stderr")
        # Only tasks have samples, not groups of them.
        samples = {task: count["effective"] for task, count in found["n-samples"].items()}
        return {
            "metric": metric,
            "score": scale * measures[metric],
            "stderr": None if stderr is None else scale * stderr,
            "few_shot": found["n-shot"].get(name, few_shot),
            "samples": samples.get(name, sum(samples.values())),
            "measures": measures,
        }


def _measures(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a result of lm-eval, without the names of its filters."""
    return {
        key.partition(",")[0]: value
        for key, value in result.items()
        if "," in key and isinstance(value, int | float)
    }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep lm-eval from reporting what it does, other than by its progress bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

"""The command `isoflop evaluate`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from isoflop.errors import IsoflopError
from isoflop.lab.cli.output import print_json


@dataclass(kw_only=True)
class Evaluate:
    """Measure the model of a run, as its latest checkpoint has it, on test data or by lm-eval."""

    path: tyro.conf.Positional[Path]
    """Run directory; the results go into its evaluation.json."""
    tasks: str | None = None
    """Tasks of lm-eval for a language model, such as `arc_challenge,hellaswag`; by default none."""
    data: Path | None = None
    """Folder of the data set, if it is no longer where it was; with --tasks, of the tokenizer."""
    include_path: Path | None = None
    """Folder of further tasks for lm-eval, as YAML files."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Measure and print."""
        from isoflop.lab.training.evaluate import evaluate, format_evaluation

        tasks = () if self.tasks is None else tuple(self.tasks.split(","))
        if self.include_path is not None and not tasks:
            raise IsoflopError("--include-path is the folder of tasks: name them with --tasks.")
        found = evaluate(self.path, tasks=tasks, data=self.data, include_path=self.include_path)
        if self.json:
            print_json(found)
        else:
            print(format_evaluation(found))

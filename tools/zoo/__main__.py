"""Command line of the survey: `python -m tools.zoo`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from isoflop.errors import IsoflopError
from isoflop.files import new_file, to_json, write_text
from isoflop.lab.training.configs import build_transform
from tools.zoo.candidates import Sample
from tools.zoo.report import markdown_report, text_report
from tools.zoo.survey import survey


@dataclass(kw_only=True)
class Zoo:
    """Transform a random sample of models of timm, torchvision and transformers, and check each.

    Of the sample, half are from timm, a fifth from torchvision (classification models both) and
    the rest are text architectures of transformers at tiny sizes. Nothing is downloaded.
    """

    sample: int = 100
    """Number of models; one that cannot be built is replaced by the next."""
    seed: int = 0
    """Seed of the sample."""
    sources: tuple[Literal["timm", "torchvision", "transformers"], ...] = (
        "timm",
        "torchvision",
        "transformers",
    )
    """Libraries to sample from."""
    models: tuple[str, ...] = ()
    """Models to check in place of a sample: `timm:NAME`, `transformers:TYPE` (tiny), …"""
    transform: str = "wide"
    """Transform to apply; see `isoflop list`."""
    sparsity: float = 0.75
    """Sparsity of the transform, in [0, 1)."""
    jobs: int = 1
    """Models to check at a time."""
    timeout: float = 300.0
    """Seconds that a model may take."""
    out: Path | None = None
    """File of the results; those that it holds already, of the same versions and options, are kept."""
    fresh: bool = False
    """Check again what the file of the results holds."""
    markdown: Path | None = None
    """File for the tables of the results."""
    json: bool = False
    """Print JSON; the progress goes to stderr."""

    def run(self) -> None:
        """Print a line for every model, then the rates and the failures by cause."""
        config = build_transform(self.transform, sparsity=self.sparsity)
        for path in (self.out, self.markdown):
            if path is not None:
                new_file(path)
        if self.models:
            sample = Sample.of(self.models)
        else:
            sample = Sample.draw(self.sources, self.sample, self.seed)
        stream = sys.stderr if self.json else sys.stdout
        outcome = survey(
            config,
            sample,
            jobs=self.jobs,
            timeout=self.timeout,
            out=self.out,
            fresh=self.fresh,
            tell=lambda line: print(line, file=stream, flush=True),
        )
        if self.markdown is not None:
            write_text(self.markdown, markdown_report(outcome, self._command()))
        if self.json:
            print(to_json(outcome, indent=1))
        else:
            print(f"\n{text_report(outcome)}")

    def _command(self) -> str:
        """Return the command line that makes the same results."""
        parts = ["python -m tools.zoo"]
        if self.models:
            parts += ["--models", *self.models]
        else:
            parts += ["--sample", str(self.sample), "--seed", str(self.seed)]
            parts += ["--sources", *self.sources]
        parts += ["--transform", self.transform, "--sparsity", str(self.sparsity)]
        return " ".join(parts)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a mistake of the user is one line and exit code 2."""
    try:
        tyro.cli(Zoo, prog="python -m tools.zoo", args=args).run()
    except IsoflopError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

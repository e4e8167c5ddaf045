"""First form of the command."""

import argparse
from pathlib import Path

from isoflop.training.configs import build_transform
from isoflop.zoo.candidates import SOURCES, Sample
from isoflop.zoo.report import text_report
from isoflop.zoo.survey import survey


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--source", nargs="*", choices=SOURCES, default=SOURCES)
    parser.add_argument("--transform", default="wide")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    config = build_transform(args.transform, sparsity=args.sparsity)
    sample = (
        Sample.of(args.models) if args.models else Sample.draw(args.source, args.sample, args.seed)
    )
    outcome = survey(
        config,
        sample,
        jobs=args.jobs,
        timeout=args.timeout,
        out=args.out,
        fresh=args.fresh,
        tell=lambda line: print(line, flush=True),
    )
    print(text_report(outcome))


if __name__ == "__main__":
    main()

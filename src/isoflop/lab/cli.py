"""The command line, `isoflop COMMAND`: one class for each command.

Everything heavy is imported by the command that needs it, so that `isoflop --help` is fast.
"""

import dataclasses
import inspect
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from isoflop.errors import IsoflopError
from isoflop.files import to_json

try:
    import tyro
except ModuleNotFoundError:
    sys.exit("The command line needs tyro, which is not installed: pip install 'isoflop[train]'")

from isoflop.lab.bench.command import Bench
from isoflop.lab.reproduce.command import Reproduce
from isoflop.spelling import spelt


@dataclass(kw_only=True)
class List:
    """List transforms, methods, patterns, allocations, schedules, recipes, models and tables."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print every registry."""
        tables = {
            noun: {name: _first_line(entry) for name, entry in registry.items()}
            for noun, registry in _registries().items()
        }
        if self.json:
            _print_json(tables)
            return
        width = max(len(name) for table in tables.values() for name in table)
        for noun, table in tables.items():
            print(noun)
            for name, text in table.items():
                print(f"  {name.ljust(width)}  {text}".rstrip())


@dataclass(kw_only=True)
class Profile:
    """Count the exact MACs of a model, or plan a transform of it. Nothing is trained."""

    model: tyro.conf.Positional[str]
    """`timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` or `package.module:function`."""
    transform: str | None = None
    """Transform to plan, such as `wide`; see `isoflop list`."""
    sparsity: float | None = None
    """Sparsity of the transform, in [0, 1)."""
    width: float | None = None
    """Width factor, for the transforms that have one (`low_rank`)."""
    scope: Literal["model", "layers"] = "model"
    """Whether the whole model meets the FLOP budget, or each layer its own."""
    input: str | None = None
    """Shape of the example input, such as `1,3,224,224`; by default the model's own."""
    num_classes: int | None = None
    """Outputs of the classifier; by default the model's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print the table of costs, or the plan."""
        from isoflop.flops.trace import profile
        from isoflop.lab.training.configs import build_transform
        from isoflop.model_specs import build_model, default_example_shape, example_inputs
        from isoflop.transforms import transform

        config = None
        if self.transform is not None:
            config = build_transform(self.transform, sparsity=self.sparsity, width=self.width)
        elif self.sparsity is not None or self.width is not None:
            raise IsoflopError(
                "--sparsity and --width need a --transform, such as --transform wide."
            )
        model = build_model(self.model, self.num_classes, meta=True)
        shape = _shape(self.input) if self.input else default_example_shape(self.model, model)
        inputs = example_inputs(self.model, shape, meta=True)
        if config is None:
            result = profile(model, inputs)
        else:
            _, result = transform(model, config, example_inputs=inputs, scope=self.scope)
        if self.json:
            _print_json(result.to_dict())
        else:
            print(result)


@dataclass(kw_only=True)
class Train:
    """Train a recipe, dense or sparse, and write a run directory."""

    recipe: tyro.conf.Positional[str]
    """Name of the recipe; see `isoflop list`."""
    out: Path
    """Run directory; must be new or empty, unless --resume."""
    transform: str | None = None
    """Transform of the model, such as `wide`; by default none."""
    sparsity: float | None = None
    """Sparsity of the transform; without one, of plain sparse training."""
    width: float | None = None
    """Width factor, for the transforms that have one (`low_rank`)."""
    sparse_ends: bool = False
    """Let the transform make the first and the last layer sparse too."""
    scope: Literal["model", "layers"] | None = None
    """Whether the whole model meets the FLOP budget, or each layer its own; by default the recipe's."""
    method: str | None = None
    """Training method; by default `rigl` with a transform or a sparsity, else `dense`."""
    option: tuple[str, ...] = ()
    """Options of the method, such as `ramp_end=0.3 initial_density=0.8`; see docs/methods.md."""
    allocation: str = "uniform"
    """How the sparsity is spread over the layers."""
    pattern: str = "unstructured"
    """Which weights may be non-zero together, such as `2:4`, `4:8-T` or `4x1`."""
    storage: Literal["masked", "compressed"] = "masked"
    """Whether sparse weights are dense with masks, or their non-zeros alone (CPU)."""
    seed: int = 0
    """Seed of initialisation, masks, order and augmentation."""
    data: Path | None = None
    """Folder of the data set."""
    workers: int | None = None
    """Processes that read samples for each training process; by default as many as are useful."""
    spectra: str | None = None
    """How often to measure the spectra of the masks, such as `every=1epoch` or `every=100steps`."""
    shard: bool = False
    """Spread the model over the processes that torchrun started (FSDP2); see docs/distributed.md."""
    backbone: Path | None = None
    """Run directory of a trained classifier, whose layers and masks the recipe's model begins with."""
    backbone_gap: float | None = None
    """Largest relative gap between the FLOPs of these layers and of the dense model's (1e-6)."""
    resume: bool = False
    """Continue the run in the run directory, if there is one."""
    model: str | None = None
    """Model, in place of the recipe's and at its own width: `isoflop:resnet34_cifar`, `timm:NAME`, …"""
    num_classes: int | None = None
    """Classes of the data set, in place of the recipe's."""
    epochs: int | None = None
    """Epochs, in place of the recipe's; the learning-rate schedule is scaled with them."""
    tokens: int | None = None
    """Tokens to train a language model on, in place of the recipe's."""
    batch_size: int | None = None
    """Batch size, in place of the recipe's."""
    accumulate: int = 1
    """Parts of a batch that are run one after another, where a whole one needs too much memory."""
    lr: float | None = None
    """Initial learning rate, in place of the recipe's."""
    base_width: int | None = None
    """Channels of the model's first stage, in place of the recipe's."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Type of the arithmetic, in place of the recipe's, or else of what Accelerate is configured for."""
    alpha: float | None = None
    """Fraction of the weights that the first mask update moves."""
    update_every: int | None = None
    """Steps between two mask updates."""
    end_fraction: float | None = None
    """Part of the training after which the masks stay fixed."""
    json: bool = False
    """Print the summary as JSON, and nothing else."""
    quiet: bool = False
    """Show no progress."""

    def run(self) -> None:
        """Train and print the summary."""
        from isoflop.kernels import retain_freed_memory
        from isoflop.lab.metrics import number
        from isoflop.lab.recipes import get_recipe
        from isoflop.lab.tasks import TASKS
        from isoflop.lab.training import build_transform, train
        from isoflop.lab.training.configs import build_method, parse_options
        from isoflop.lab.training.distributed import is_main_process

        if self.storage == "compressed":
            retain_freed_memory()
        recipe = get_recipe(self.recipe)
        if self.model is not None:
            recipe = dataclasses.replace(recipe, model=self.model, base_width=None)
        recipe = recipe.replace(
            num_classes=self.num_classes,
            epochs=self.epochs,
            tokens=self.tokens,
            batch_size=self.batch_size,
            lr=self.lr,
            sparse_lr=self.lr,
            base_width=self.base_width,
            mixed_precision=self.mixed_precision,
            alpha=self.alpha,
            update_every=self.update_every,
            end_fraction=self.end_fraction,
        )
        config, sparsity = None, self.sparsity
        if self.transform is not None:
            config = build_transform(
                self.transform,
                sparsity=sparsity,
                width=self.width,
                dense_ends=False if self.sparse_ends else None,
            )
            sparsity = None
        elif self.sparse_ends:
            raise IsoflopError("--sparse-ends needs a --transform.")
        elif self.width is not None:
            raise IsoflopError("--width needs a --transform that has a width, such as low_rank.")
        sparse = self.transform is not None or self.sparsity is not None
        name = self.method or ("rigl" if sparse else "dense")
        summary = train(
            recipe,
            self.out,
            transform=config,
            method=build_method(name, recipe, **parse_options(self.option)),
            sparsity=sparsity,
            allocation=self.allocation,
            pattern=self.pattern,
            storage=self.storage,
            scope=self.scope,
            seed=self.seed,
            data=self.data,
            accumulate=self.accumulate,
            workers=self.workers,
            spectra=self.spectra,
            shard=self.shard,
            backbone=self.backbone,
            backbone_gap=self.backbone_gap,
            resume=self.resume,
            quiet=self.quiet or self.json,
        )
        if not is_main_process():
            return
        if self.json:
            _print_json(summary)
            return
        metric = TASKS.get(recipe.task).metric
        print(
            f"{metric.text(summary[metric.name])} (best {number(summary[f'best_{metric.name}'])})\n"
            f"MACs {summary['macs']:,}, dense {summary['dense_macs']:,} "
            f"(gap {summary['relative_gap']:+.2e})\n"
            f"weights {summary['nnz']:,} of {summary['numel']:,}\n"
            f"MACs of a step {summary['average_macs']:,.0f} on average\n"
            f"training FLOPs {summary['training_flops']:.4g} in {summary['seconds']:.1f} s\n"
            f"run directory {self.out}"
        )
        if "backbone" in summary:
            costs = summary["backbone"]
            print(
                f"MACs of the backbone {costs['macs']:,}, dense {costs['dense_macs']:,} "
                f"(gap {costs['relative_gap']:+.2e}); its wider maps add {costs['added_macs']:,} to the "
                "rest"
            )
        if summary["skipped"]:
            print(f"{summary['skipped']} samples could not be read: {self.out}/skipped.jsonl")


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
            _print_json(found)
        else:
            print(format_evaluation(found))


@dataclass(kw_only=True)
class Spectra:
    """Measure the spectra of the masks of a run, as its latest checkpoint has them."""

    path: tyro.conf.Positional[Path]
    """Run directory, or a checkpoint in one."""
    bound: Literal["mean-degree", "biregular", "mu0"] = "mean-degree"
    """Bound of a Ramanujan graph; see docs/spectra.md."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print the measures of every layer and of the network."""
        import time

        from isoflop.lab.report import format_spectra
        from isoflop.lab.training import restore
        from isoflop.lab.training.observer import measure

        restored = restore(self.path)
        start = time.perf_counter()
        found = measure(restored.model, self.bound)
        seconds = time.perf_counter() - start
        result = {"epoch": restored.epoch, "step": restored.step, "seconds": seconds, **found}
        if self.json:
            _print_json(result)
        else:
            print(format_spectra(result))


@dataclass(kw_only=True)
class Report:
    """Write one HTML page about runs: tables, figures, plans, configurations."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path = Path("report.html")
    """The page to write."""
    bench: tuple[Path, ...] = ()
    """Results of `isoflop bench … --out FILE`, for the figures of speed."""
    figures: Path | None = None
    """Folder for the figures as files too, for print: light and dark. It is made if need be."""
    title: str = "Sparse training report"
    """Title of the page."""
    json: bool = False
    """Print the table, and what the page lacks and why, as JSON."""

    def run(self) -> None:
        """Write the page and say what it lacks."""
        from isoflop.lab.report import format_table, write_report

        written = write_report(
            self.runs, self.out, bench=self.bench, figures=self.figures, title=self.title
        )
        if self.json:
            _print_json(written)
            return
        print(format_table(written["rows"]))
        for name, reason in written["missing"].items():
            print(f"without {name}: {reason}")
        for path, problems in written["problems"].items():
            print(f"{path}: {' '.join(problems)}")
        print(f"page {self.out}")


@dataclass(kw_only=True)
class Export:
    """Write a trained model as a file for use: isoflop's own, or a program for other engines."""

    model: tyro.conf.Positional[Path]
    """Run directory, or a file that `isoflop.save` or `--format safetensors` wrote."""
    out: Path
    """File to write."""
    format: Literal["safetensors", "onnx", "pt2"] = "safetensors"
    """`safetensors` keeps sparse weights without zeros; `onnx` and `pt2` have zeros in place."""
    input: str | None = None
    """Shape of the example input of `onnx` and `pt2`, batch first; by default the model's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Write the file and print its size."""
        from isoflop.io import export, save
        from isoflop.io.file import read_model
        from isoflop.lab.training import load_run
        from isoflop.model_specs import example_inputs

        if self.model.is_dir():
            model, plan, source = load_run(self.model)
        else:
            model, plan, source = read_model(self.model)
        if self.format == "safetensors":
            save(model, self.out, plan=plan, source=source)
        else:
            # A batch of two, as exporters take a size of one for a constant.
            inputs = source.example_inputs(model, batch=2)
            if self.input:
                inputs = example_inputs(source.spec, _shape(self.input))
            export(model, self.out, format=self.format, example_inputs=inputs)
        size = self.out.stat().st_size
        if self.json:
            _print_json({"out": str(self.out), "format": self.format, "bytes": size})
        else:
            print(f"{self.out}: {self.format}, {size:,} bytes")


Command = (
    Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Profile, tyro.conf.subcommand("profile")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Spectra, tyro.conf.subcommand("spectra")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def parse(args: Sequence[str] | None = None) -> Any:
    """Return the command that a command line stands for; `run()` runs it.

    Raises:
        UnknownNameError: There is no such command, or no such choice of an option.
    """
    return tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="isoflop",
        description="Sparse Iso-FLOP training: larger, sparser models for exactly the same FLOPs.",
        args=spelt(sys.argv[1:] if args is None else args, Command),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user, or a full disk, is one line and exit code 2."""
    # As with `python -m`, `package.module:function` may lie in the working directory.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        command = parse(args)
        command.run()
        sys.stdout.flush()
    except IsoflopError as error:
        _fail(str(error))
    except BrokenPipeError:  # as of `isoflop list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, a folder that may not be written to: no mistake of ours, nor a traceback's worth.
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print(
            "Interrupted. Continue a training run with --resume, others by the same command.",
            file=sys.stderr,
        )
        sys.exit(130)


def _fail(message: str) -> None:
    text = " ".join(message.split())
    if sys.stderr.isatty():
        text = f"\033[31m{text}\033[0m"
    print(text, file=sys.stderr)
    sys.exit(2)


def _registries() -> dict[str, Any]:
    import isoflop.methods  # noqa: F401  (registers the methods)
    from isoflop.lab.recipes import RECIPES
    from isoflop.lab.reproduce import TABLES
    from isoflop.methods.base import METHODS
    from isoflop.methods.schedules import SCHEDULES
    from isoflop.model_registry import MODELS
    from isoflop.patterns import PATTERNS
    from isoflop.sparsity.allocation import ALLOCATIONS
    from isoflop.transforms import TRANSFORMS

    return {
        "transforms": TRANSFORMS,
        "methods": METHODS,
        "patterns": PATTERNS,
        "allocations": ALLOCATIONS,
        "schedules": SCHEDULES,
        "recipes": RECIPES,
        "models": MODELS,
        "tables": TABLES,
    }


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or math.prod(shape) >= 2**63:
        raise IsoflopError(f"--input {text!r} is no shape. Write sizes, such as 1,3,224,224.")
    return shape


def _print_json(data: Any) -> None:
    print(to_json(data, indent=1))


if __name__ == "__main__":
    main()

"""The command `isoflop train`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from isoflop.errors import IsoflopError
from isoflop.lab.cli.output import print_json


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
    """Options of the method, such as `pruning_end=0.3 initial_density=0.8`; see docs/methods.md."""
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
            print_json(summary)
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

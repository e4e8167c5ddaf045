"""The command `isoflop bench`; heavy imports happen when it runs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(kw_only=True)
class Options:
    """What all workloads have in common."""

    sparsity: tuple[float, ...] = (0.5, 0.75, 0.9)
    """Sparsities of Sparse Wide; 0 is the original model."""
    pattern: str = "unstructured"
    """Which weights may be non-zero together, such as `4x1`; blocks of Hugging Face's Conv1D, whose
    weights are stored (in, out), are `1x4`."""
    threads: int | None = None
    """Threads of every contestant; by default as many as PyTorch has."""
    repeats: int = 5
    """Rounds that are timed; the fastest counts."""
    peers: tuple[str, ...] = ("all",)
    """Peers to compare with, of those that benchmarks/setup_peers.sh installs: names, all, none."""
    skip: tuple[str, ...] = ()
    """Contestants to leave out, such as `masked`, which is slow at high sparsity."""
    bf16: bool = False
    """Time the dense model and isoflop in bfloat16 as well."""
    peers_folder: Path = Path("benchmarks/.peers")
    """Where the peers are installed."""
    seed: int = 0
    """Seed of weights, masks and batch."""
    out: Path | None = None
    """File for the results as JSON, written anew after each sparsity."""
    plot: Path | None = None
    """File for the figure (.png, .pdf, .svg)."""
    json: bool = False
    """Print JSON; the progress goes to stderr."""

    def measure(self, build: Callable[..., Any], describe: Callable[..., Any]) -> None:
        """Time the cases that `build` makes, print the results and draw what `describe` returns."""
        from isoflop.files import new_file, to_json, write_json
        from isoflop.lab.bench import format_machine, format_result, run_bench
        from isoflop.lab.report import check_figure_path, save_figure

        if self.out is not None:
            new_file(self.out)
        if self.plot is not None:
            check_figure_path(self.plot)

        def write(results: list[dict[str, Any]]) -> None:
            if self.out is not None:
                write_json(self.out, _flat(results))

        results = run_bench(
            functools.partial(build, pattern=self.pattern, seed=self.seed),
            self.sparsity,
            threads=self.threads,
            repeats=self.repeats,
            peers=self.peers,
            skip=self.skip,
            bf16=self.bf16,
            peers_folder=self.peers_folder,
            done=write,
        )
        if self.json:
            print(to_json(_flat(results), indent=1))
        else:
            print(format_machine(results[0]["machine"]))
            print("\n\n".join(format_result(result) for result in results))
        if self.plot is not None:
            (figure,) = describe([results])
            save_figure(figure, self.plot)


@dataclass(kw_only=True)
class ModelOptions(Options):
    """What inference and training have in common."""

    batch: int | None = None
    """Samples; by default 64 images for inference, 128 for training, 8 sequences of tokens."""
    image: int | None = None
    """Height and width of the images; by default the model's own."""
    sequence: int | None = None
    """Tokens of a sequence; by default the model's own number."""
    scope: Literal["model", "layers"] = "model"
    """Whether the whole model meets the FLOP budget, or each layer its own."""

    def compare(self, kind: Literal["inference", "training"], model: str) -> None:
        """Time the model and its Sparse Wide forms."""
        from isoflop.lab.bench import model_case
        from isoflop.lab.report.figures.speed import relative_times

        build = functools.partial(
            model_case,
            kind,
            model,
            batch=self.batch,
            image=self.image,
            sequence=self.sequence,
            scope=self.scope,
        )
        self.measure(build, relative_times)


@dataclass(kw_only=True)
class Inference(ModelOptions):
    """Time forward passes of a model and of its Sparse Wide forms of equal FLOPs."""

    model: str = "torchvision:resnet18"
    """`timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` or `package.module:function`."""

    def run(self) -> None:
        """Print the times."""
        self.compare("inference", self.model)


@dataclass(kw_only=True)
class Training(ModelOptions):
    """Time training steps of a model and of its Sparse Wide forms: SGD for images, else AdamW."""

    model: str = "isoflop:resnet18_cifar"
    """`timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` or `package.module:function`; of
    language models for instance `isoflop:gpt3_small_blocks`."""

    def run(self) -> None:
        """Print the times."""
        self.compare("training", self.model)


@dataclass(kw_only=True)
class Matmul(Options):
    """Time a single layer and its widened sparse forms of equal FLOPs."""

    layer: Literal["linear", "conv"] = "linear"
    """Linear layer or convolution."""
    inputs: int | None = None
    """Inputs of the dense layer: by default 768, or 64 channels of a convolution."""
    outputs: int | None = None
    """Outputs of the dense layer: by default 3072, or 64 channels of a convolution."""
    batch: int | None = None
    """Rows of the input: by default 2048, or 16 images for a convolution."""
    kernel: int = 3
    """Height and width of the kernel of a convolution."""
    stride: int = 1
    """Stride of a convolution."""
    image: int = 56
    """Height and width of the images of a convolution."""
    backward: bool = False
    """Compute the gradients of input, weight and bias too."""
    fixed_size: bool = False
    """Do not widen the layer, as in the paper's figure 7."""

    def run(self) -> None:
        """Print the times."""
        from isoflop.lab.bench import layer_case
        from isoflop.lab.report.figures.speed import speed_ups

        defaults = (768, 3072, 2048) if self.layer == "linear" else (64, 64, 16)
        given = (self.inputs, self.outputs, self.batch)
        inputs, outputs, batch = (
            d if g is None else g for g, d in zip(given, defaults, strict=True)
        )
        build = functools.partial(
            layer_case,
            self.layer,
            inputs=inputs,
            outputs=outputs,
            batch=batch,
            kernel=self.kernel,
            stride=self.stride,
            image=self.image,
            backward=self.backward,
            fixed_size=self.fixed_size,
        )
        self.measure(build, speed_ups)


@dataclass(kw_only=True)
class Bench:
    """Time isoflop, dense PyTorch and peers on the same work, in turns."""

    workload: Annotated[
        Annotated[Inference, tyro.conf.subcommand("inference")]
        | Annotated[Training, tyro.conf.subcommand("training")]
        | Annotated[Matmul, tyro.conf.subcommand("matmul")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Run the workload's command."""
        self.workload.run()


def _flat(results: list[dict[str, Any]]) -> Any:
    """Return the only result, or the list of them."""
    return results[0] if len(results) == 1 else results

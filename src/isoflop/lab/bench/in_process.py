"""The contestants of this process: dense and masked PyTorch, PyTorch's sparse matrices, isoflop."""

import copy
import warnings
from abc import abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import NoEffectWarning
from isoflop.kernels import has_bfloat16
from isoflop.kernels.cpu.layout import to_batch_innermost
from isoflop.lab.bench.case import Case, Job
from isoflop.lab.bench.contestant import CONTESTANTS, Contestant, timed
from isoflop.lab.bench.ours import ours
from isoflop.lab.bench.work import Work
from isoflop.masks import attach_mask, get_mask


class InProcess(Contestant):
    """A contestant whose model runs in this process."""

    _work: Work | None = None

    @abstractmethod
    def make(self, case: Case) -> Work:
        """Return the work, ready to be timed."""

    def prepare(self, case: Case, peers_folder: Path) -> None:
        """Make the work."""
        self._work = self.make(case)

    def run(self) -> float:
        """Do the work once and return its seconds."""
        assert self._work is not None
        return timed(self._work)

    def outputs(self) -> dict[str, Tensor]:
        """Do the work and return its results."""
        assert self._work is not None
        return self._work.results()

    def close(self) -> None:
        """Free the model."""
        self._work = None


class Dense(InProcess):
    """The original model, in some form."""

    on_dense = True


@CONTESTANTS.register("dense_contiguous")
class DenseContiguous(Dense):
    """The original model, PyTorch, channels before height and width (NCHW)."""

    def make(self, case: Case) -> Work:
        """Copy the model as it is."""
        return case.dense.start(copy.deepcopy(case.dense.model), case.dense.inputs)


@CONTESTANTS.register("dense_channels_last")
class DenseChannelsLast(Dense):
    """The original model, PyTorch, channels last in memory (NHWC)."""

    def unsuited(self, case: Case, peers_folder: Path) -> str | None:
        """Only images have channels."""
        return None if _has_images(case) else "the inputs are no images"

    def make(self, case: Case) -> Work:
        """Copy the model in the other layout."""
        return channels_last(case.dense)


@CONTESTANTS.register("dense_compiled")
class DenseCompiled(Dense):
    """The original model, by `torch.compile`; for inference with its weights frozen."""

    def make(self, case: Case) -> Work:
        """Compile the model in the layout that suits the compiler."""
        return compiled(_usual_layout(case.dense), case)

    def close(self) -> None:
        """Free the model and what was compiled."""
        super().close()
        torch.compiler.reset()


@CONTESTANTS.register("dense_bf16")
class DenseBf16(Dense):
    """The original model in bfloat16, PyTorch: all of it for inference, by autocast for training."""

    bf16 = True

    def make(self, case: Case) -> Work:
        """Convert a copy."""
        work = _usual_layout(case.dense)
        model, inputs = work.model, work.inputs
        if case.trains:
            model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
            return work
        inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
        return case.dense.start(model.bfloat16(), inputs)


@CONTESTANTS.register("dense_bf16_compiled")
class DenseBf16Compiled(DenseBf16):
    """The same by `torch.compile`."""

    def make(self, case: Case) -> Work:
        """Convert and compile a copy."""
        return compiled(super().make(case), case)

    def close(self) -> None:
        """Free the model and what was compiled."""
        super().close()
        torch.compiler.reset()


@CONTESTANTS.register("masked")
class Masked(InProcess):
    """The transformed model with its zeros computed, PyTorch, in the faster layout."""

    _layout = ""

    @property
    def note(self) -> str | None:
        """The layout."""
        return self._layout

    def make(self, case: Case) -> Work:
        """Try the layouts."""
        job = case.sparse
        self._layout = "contiguous"
        work = job.start(copy.deepcopy(job.model), job.inputs)
        if not _has_images(case):
            return work
        other = channels_last(job)
        seconds = [_second_run(candidate) for candidate in (work, other)]
        if seconds[1] < seconds[0]:
            self._layout, work = "channels_last", other
        # The runs may have trained it.
        work.model.load_state_dict(job.model.state_dict())
        return job.start(work.model, work.inputs)


@CONTESTANTS.register("torch_csr")
class TorchCsr(InProcess):
    """A linear layer whose weight is a sparse CSR tensor of PyTorch."""

    peer = True

    def unsuited(self, case: Case, peers_folder: Path) -> str | None:
        """PyTorch has no sparse convolution."""
        return None if isinstance(case.sparse.model, nn.Linear) else "linear layers only"

    def make(self, case: Case) -> Work:
        """Convert the weight."""
        layer = case.sparse.model
        assert isinstance(layer, nn.Linear)
        return case.sparse.start(CsrLinear(layer), case.sparse.inputs)


@CONTESTANTS.register("isoflop")
class Isoflop(InProcess):
    """The transformed model as isoflop runs it, in float32."""

    def make(self, case: Case) -> Work:
        """Convert the model."""
        job = case.sparse
        with warnings.catch_warnings():
            # At sparsity 0 there is nothing to make faster.
            warnings.simplefilter("ignore", NoEffectWarning)
            model = ours(
                copy.deepcopy(job.model),
                mode="training" if case.trains else "inference",
                example_inputs=job.inputs,
                allow_bf16=self.bf16,
            )
        inputs = job.inputs
        if isinstance(job.model, nn.Conv2d):
            # As for channels_last: between the layers of a model, activations have this layout.
            inputs = to_batch_innermost(inputs)
        return job.start(model, inputs)


@CONTESTANTS.register("isoflop_bf16")
class IsoflopBf16(Isoflop):
    """The same where layers may round what they multiply to bfloat16."""

    bf16 = True

    def unsuited(self, case: Case, peers_folder: Path) -> str | None:
        """Take part if the processor has the instructions."""
        return None if has_bfloat16() else "the kernels have no products of bfloat16 here"


class CsrLinear(nn.Module):
    """A linear layer whose weight is a sparse CSR tensor.

    Args:
        layer: The dense layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that CSR is in a beta state
            self.weight = nn.Parameter(layer.weight.detach().to_sparse_csr())
        self.bias = copy.deepcopy(layer.bias)
        # PyTorch computes the gradient of every weight; only those on the mask are to be compared.
        mask = get_mask(layer)
        if mask is not None:
            attach_mask(self, "weight", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        return F.linear(x, self.weight, self.bias)


def channels_last(job: Job) -> Work:
    """Return the work of a copy of the model in channels-last layout, on inputs of that layout."""
    layout = torch.channels_last
    model = copy.deepcopy(job.model).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    return job.start(model, job.inputs.to(memory_format=layout))


def compiled(work: Work, case: Case) -> Work:
    """Return `work` with its model compiled."""
    work.model.compile()
    if not case.trains:
        import torch._inductor.config as inductor  # takes a second, so not above

        # Freezing folds BatchNorm into the convolutions, and packs the weights. The compiler reads the
        # setting when the model runs for the first time.
        with inductor.patch(freezing=True):
            work()
    return work


def _usual_layout(job: Job) -> Work:
    """Return the work of a copy of the model, of images with channels last."""
    if job.inputs.ndim == 4:
        return channels_last(job)
    return job.start(copy.deepcopy(job.model), job.inputs)


def _second_run(work: Work) -> float:
    """Return the seconds of the second run, as the first one sets things up."""
    work()
    return timed(work)


def _has_images(case: Case) -> bool:
    return case.dense.inputs.ndim == 4

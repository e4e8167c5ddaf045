"""The errors that isoflop raises on user mistakes.

Every one is a `ValueError`, names the fix, and is raised before anything is changed.
"""


class IsoflopError(ValueError):
    """Base of every error that isoflop raises on purpose."""


class UnknownNameError(IsoflopError):
    """A name that no registry knows; the message lists the known ones."""


class InputError(IsoflopError):
    """Example inputs that the model cannot take.

    Attributes:
        reason: Where and why the forward pass failed, if it was run.
    """

    reason = ""


class WideningError(IsoflopError):
    """A model whose widths cannot be told apart from its fixed sizes."""


class NoTransformableLayersError(IsoflopError):
    """A model in which nothing can be transformed or sparsified."""


class BudgetError(IsoflopError):
    """A FLOP budget that no choice of sizes and sparsities can meet."""


class PlanError(IsoflopError):
    """A plan that does not describe the model it is used with."""


class OptimizerError(IsoflopError):
    """An optimizer that does not train the weights to be sparsified."""


class DataError(IsoflopError):
    """A data folder that is missing, incomplete or of the wrong format."""


class RunDirectoryError(IsoflopError):
    """A run directory that is in use, or that cannot be resumed."""


class WorkersError(IsoflopError):
    """Workers of a distributed run that no longer train the same model."""


class ModelFileError(IsoflopError):
    """A file of a model that is missing, damaged, foreign, or of another model."""


class WriteError(IsoflopError, OSError):
    """A file or folder that cannot be written: a full disk, a read-only file system, no permission."""


class FigureError(IsoflopError):
    """A figure that the given runs hold no data for."""


class KernelError(IsoflopError, RuntimeError):
    """Sparse kernels that are missing, or data that they cannot work on.

    It is a `RuntimeError` too, as PyTorch raises where a dense layer cannot work on its input.
    """


class NoEffectWarning(UserWarning):
    """Something was asked for that leaves the model as it was."""


class UncountedOperationWarning(UserWarning):
    """A model that runs operations whose cost is not known; they are left out of its MACs."""


class TrainedModelWarning(UserWarning):
    """A trained model was given to a transform, which draws all weights anew."""


class CacheWarning(UserWarning):
    """A file of measured times that cannot be read or written; nothing else depends on it."""


class DamagedDataWarning(UserWarning):
    """A sample that cannot be read and is left out; the summary of a run lists them all."""


class LayerCollapseWarning(UserWarning):
    """Scores that would leave a layer without a single weight; the layer was kept alive."""


class PatternGapWarning(UserWarning):
    """A pattern that cannot make the exact numbers of non-zeros that a FLOP budget needs."""

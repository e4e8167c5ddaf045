"""How often pixels of one class were taken for another, and measures of that."""

from torch import Tensor

from isoflop.lab.data.segmentation.cityscapes import IGNORED


def confusion_matrix(found: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return counts of pixels by class (row) and by what they were taken for (column).

    Args:
        found: Class numbers.
        labels: The right ones, of the same shape; those that are `IGNORED` do not count.
        num_classes: Number of classes.
    """
    counted = labels != IGNORED
    pairs = num_classes * labels[counted].long() + found[counted]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def measures(confusion: Tensor) -> dict[str, float]:
    """Return `miou` and `macc` in percent, from exact counts.

    Intersection over union is a class's share of pixels found rightly among those that are of it or
    were taken for it; accuracy that among those that are of it. Classes without such pixels are left
    out of the means.
    """
    counts = confusion.double().cpu()
    right, there, taken = counts.diag(), counts.sum(1), counts.sum(0)
    union = there + taken - right
    return {
        "miou": 100 * float((right / union)[union > 0].mean()),
        "macc": 100 * float((right / there)[there > 0].mean()),
    }

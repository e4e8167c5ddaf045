"""What surrounds the network of a detector: torchvision's anchors, losses and choice of boxes.

None of it has weights. So a detector around a network without values serves them to outputs of the
network that is trained, wherever that runs.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.lab.models import DetectionNetwork, detector
from isoflop.lab.models.detection import ANCHORS, LEVELS
from isoflop.model_specs import build_model
from isoflop.optional import require


def loss(model: str, outputs: dict[str, Tensor], targets: list[dict[str, Any]]) -> Tensor:
    """Return focal loss and box loss together (Lin et al. 2017), the mean over the images.

    Args:
        model: Specification of the network.
        outputs: What it returned.
        targets: `boxes`, `labels` and `canvas` of each image.
    """
    rules = _rules(model)
    anchors = _anchors(rules, targets[0]["canvas"], outputs["cls_logits"])
    losses = rules.compute_loss(targets, outputs, [anchors] * len(targets))
    return torch.stack(list(losses.values())).sum()


def detections(
    model: str, outputs: dict[str, Tensor], canvas: tuple[int, int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return `boxes`, `scores` and `labels` of what was found in one image.

    Args:
        model: Specification of the network.
        outputs: What it returned for the image.
        canvas: Height and breadth of the padded image.
        size: Height and breadth of the image itself.
    """
    rules = _rules(model)
    anchors = _anchors(rules, canvas, outputs["cls_logits"])
    counts = [ANCHORS * h * w for h, w in _map_sizes(rules.backbone_stride, canvas)]
    split = {name: list(value.split(counts, 1)) for name, value in outputs.items()}
    (found,) = rules.postprocess_detections(split, [list(anchors.split(counts))], [size])
    return found


@functools.cache
def _rules(model: str) -> Any:
    """Return torchvision's RetinaNet around the network without values."""
    network = build_model(model, meta=True)
    if not isinstance(network, DetectionNetwork):
        raise IsoflopError(
            f"{model} is no network for detection. Use one such as isoflop:retinanet_resnet18."
        )
    rules = detector(network)
    rules.backbone_stride = network.stride
    return rules


def _map_sizes(stride: int, canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """Return height and breadth of the maps of the pyramid; each halves the one before, rounded up."""
    height, width = canvas
    strides = [stride * 2**level for level in range(LEVELS)]
    return [(math.ceil(height / s), math.ceil(width / s)) for s in strides]


def _anchors(rules: Any, canvas: tuple[int, int], like: Tensor) -> Tensor:
    """Return the anchors of an image, on the device of `like`."""
    images = require("torchvision.models.detection.image_list", "vision")
    maps = [like.new_empty(1, 1, *size) for size in _map_sizes(rules.backbone_stride, canvas)]
    image = torch.empty(1, 1, *canvas, device="meta")
    (anchors,) = rules.anchor_generator(images.ImageList(image, [canvas]), maps)
    return anchors

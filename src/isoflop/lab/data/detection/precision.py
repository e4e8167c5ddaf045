"""Average precision as COCO defines it, by its own tools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.lab.data.detection.coco import CocoAnnotations
from isoflop.optional import require

MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""In the order in which pycocotools returns them."""


def average_precision(
    truth: CocoAnnotations, found: Sequence[dict[str, Any]], images: Sequence[int]
) -> dict[str, float]:
    """Return the measures in percent; those of a size that no object has are left out.

    Args:
        truth: What there is.
        found: What was found: `image_id`, `category_id`, `bbox` (left, top, breadth, height), `score`.
        images: Numbers of the images that were looked at.
    """
    coco = require("pycocotools.coco", "vision")
    evaluation = require("pycocotools.cocoeval", "vision")
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        categories = [{"id": n, "name": name} for name, n in truth.categories.items()]
        known.dataset = {
            "images": truth.images,
            "annotations": [dict(thing) for thing in truth.objects],
            "categories": categories,
        }
        known.createIndex()
        guess = coco.COCO()
        guess.dataset = {
            "images": truth.images,
            "annotations": [
                {**x, "id": i, "area": x["bbox"][2] * x["bbox"][3], "iscrowd": 0}
                for i, x in enumerate(found, 1)
            ],
            "categories": categories,
        }
        guess.createIndex()
        coco_eval = evaluation.COCOeval(known, guess, "bbox")
        coco_eval.params.imgIds = sorted(images)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    values = np.asarray(coco_eval.stats)[: len(MEASURES)]
    return {
        name: 100 * float(value) for name, value in zip(MEASURES, values, strict=True) if value >= 0
    }

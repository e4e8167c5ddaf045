import pytest

from isoflop.lab.data.detection.coco import CocoAnnotations
from isoflop.lab.data.detection.precision import MEASURES, average_precision


def truth(*objects, images=2):
    return CocoAnnotations(
        path=None,  # pyright: ignore[reportArgumentType]
        images=[{"id": i, "file_name": "", "height": 200, "width": 200} for i in range(images)],
        objects=[
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
            }
            for number, (image, category, bbox) in enumerate(objects, 1)
        ],
        categories={"a": 5, "b": 9},
    )


def found(image, category, bbox, score):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def test_all_found():
    known = truth((0, 5, [10, 10, 40, 40]), (1, 9, [0, 0, 120, 120]), (1, 5, [150, 150, 20, 20]))
    guesses = [found(x["image_id"], x["category_id"], x["bbox"], 0.9) for x in known.objects]
    assert average_precision(known, guesses, [0, 1]) == pytest.approx(dict.fromkeys(MEASURES, 100))


def test_nothing_found_and_sizes_that_do_not_occur():
    known = truth((0, 5, [10, 10, 40, 40]))
    assert average_precision(known, [], [0, 1]) == dict.fromkeys(
        ("ap", "ap50", "ap75", "ap_medium"), 0
    )


def test_by_hand():
    known = truth((0, 5, [0, 0, 40, 40]), (1, 5, [0, 0, 40, 40]))
    guesses = [
        found(0, 5, [0, 0, 40, 32], 0.9),  # overlap 32 / 40 = 0.8
        found(1, 5, [100, 100, 40, 40], 0.8),  # nothing there
        found(1, 5, [0, 0, 40, 40], 0.7),
    ]
    # In order of their scores: right, wrong, right. Of 101 recalls, 51 are at most 1/2, where the
    # precision is 1; for the other 50 it is 2/3. Above an overlap of 0.8, only the last is right:
    # precision 1/3 for the recalls up to 1/2.
    loose = (51 + 50 * 2 / 3) / 101
    strict = 51 / 3 / 101
    measures = average_precision(known, guesses, [0, 1])
    assert measures["ap50"] == pytest.approx(100 * loose)
    assert measures["ap75"] == pytest.approx(100 * loose)
    assert measures["ap"] == pytest.approx(100 * (7 * loose + 3 * strict) / 10)


def test_images_that_were_not_looked_at_do_not_count():
    known = truth((0, 5, [0, 0, 40, 40]), (1, 5, [0, 0, 40, 40]))
    guesses = [found(0, 5, [0, 0, 40, 40], 0.5)]
    assert average_precision(known, guesses, [0])["ap"] == pytest.approx(100)
    assert average_precision(known, guesses, [0, 1])["ap"] == pytest.approx(100 * 51 / 101)

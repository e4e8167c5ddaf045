import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.lab.data.segmentation.cityscapes import IGNORED
from isoflop.lab.data.segmentation.confusion import confusion_matrix, measures
from isoflop.lab.recipes import get_recipe
from isoflop.lab.tasks import TASKS


def test_by_hand():
    labels = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORED, 2]], dtype=torch.uint8)
    found = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 2]])
    confusion = confusion_matrix(found, labels, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # Class 3 is nowhere. Unions: 3 + 3 - 2 = 4, 4, and 1.
    assert measures(confusion) == {
        "miou": pytest.approx(100 * (2 / 4 + 2 / 4 + 1) / 3),
        "macc": pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3),
    }


def test_class_that_is_found_but_not_there_counts_for_the_union_only():
    confusion = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert measures(confusion) == {"miou": pytest.approx(25), "macc": pytest.approx(50)}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**16))
def test_counts_of_parts_add_up(classes, seed):
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(random.integers(0, classes, (3, 4, 5)))
    labels[torch.from_numpy(random.random((3, 4, 5)) < 0.2)] = IGNORED
    found = torch.from_numpy(random.integers(0, classes, (3, 4, 5)))
    whole = confusion_matrix(found, labels, classes)
    parts = sum(confusion_matrix(f, x, classes) for f, x in zip(found, labels, strict=True))
    assert torch.equal(whole, torch.as_tensor(parts))
    assert int(whole.sum()) == int((labels != IGNORED).sum())


def test_loss_ignores_pixels_and_is_the_mean_over_images():
    torch.manual_seed(0)
    recipe = get_recipe("cityscapes")
    task = TASKS.get("segmentation")
    scores = torch.randn(2, 19, 4, 4)
    labels = torch.randint(19, (2, 4, 4)).byte()
    labels[0, :2] = IGNORED
    plain = torch.nn.functional.cross_entropy(scores, labels.long(), ignore_index=IGNORED)
    counted = int((labels != IGNORED).sum())
    loss = task.loss(recipe, scores, labels)
    torch.testing.assert_close(loss, plain * counted / labels.numel())
    parts = [task.loss(recipe, scores[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    assert task.loss(recipe, scores[:1], torch.full((1, 4, 4), IGNORED)) == 0

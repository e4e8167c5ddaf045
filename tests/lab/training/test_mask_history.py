import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.lab.training.mask_history import MaskHistory, shares, unpack


def mask(bits):
    return torch.tensor([[bit == "1" for bit in bits]])


def test_worked_example():
    history = MaskHistory({"w": mask("110000")})
    first = history.record({"w": mask("110000")})["w"]
    assert first == {
        "numel": 6, "nnz": 2, "initial_nnz": 2, "from_initial": 0, "grown": 0, "dropped": 0,
        "explored": 2,
    }  # fmt: skip
    history.record({"w": mask("011000")})
    last = history.record({"w": mask("001100")})
    assert last["w"] == {
        "numel": 6, "nnz": 2, "initial_nnz": 2, "from_initial": 4, "grown": 1, "dropped": 1,
        "explored": 4,
    }  # fmt: skip
    assert shares(last) == {
        "density": pytest.approx(1 / 3),
        "explored": pytest.approx(2 / 3),
        "from_initial": 1.0,  # nothing in common
        "churn": 0.5,
    }
    kept = unpack(history.state_dict())["w"]
    assert torch.equal(kept["initial"], mask("110000"))
    assert torch.equal(kept["present"], mask("001100"))
    assert torch.equal(kept["ever"], mask("111100"))


def test_masks_that_lose_everything():
    history = MaskHistory({"w": mask("11")})
    gone = history.record({"w": mask("00")})
    assert shares(gone) == {"density": 0, "explored": 1, "from_initial": 1, "churn": 1}
    assert shares({}) == {"density": 0, "explored": 0, "from_initial": 0, "churn": 0}
    assert MaskHistory({}).record({}) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_counts_follow_from_the_masks(rows):
    masks = [torch.tensor(row) for row in rows]
    history, loaded = MaskHistory({"w": masks[0]}), MaskHistory({"w": ~masks[0]})
    previous, ever = masks[0], masks[0]
    for present in masks:
        loaded.load_state_dict(history.state_dict())
        ever = ever | present
        expected = {
            "numel": 5,
            "nnz": int(present.sum()),
            "initial_nnz": int(masks[0].sum()),
            "from_initial": int((present != masks[0]).sum()),
            "grown": int((present & ~previous).sum()),
            "dropped": int((previous & ~present).sum()),
            "explored": int(ever.sum()),
        }
        assert history.record({"w": present}) == {"w": expected}
        assert loaded.record({"w": present}) == {"w": expected}
        previous = present

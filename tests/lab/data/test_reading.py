import pytest
import torch

from isoflop.lab.data.reading import default_workers, read_sample


def reader(damaged):
    def read(index):
        if index in damaged:
            raise OSError(f"{index} is damaged")
        return f"sample {index}"

    return read


@pytest.mark.parametrize(
    ("index", "replace", "expected", "tried"),
    [
        (5, True, (5, "sample 5"), []),
        (3, False, None, [3]),
        (3, True, (5, "sample 5"), [3, 4]),
        (299, True, (0, "sample 0"), [299]),
    ],
)
def test_the_next_sample_takes_the_place_of_one_that_cannot_be_read(
    index, replace, expected, tried
):
    failed = {}
    read = reader({3, 4, 299})
    assert read_sample(read, index, 300, replace=replace, failed=failed) == expected
    assert failed == {i: f"OSError: {i} is damaged" for i in tried}


@pytest.mark.parametrize(("count", "tries"), [(1, 1), (50, 2), (300, 5)])
def test_one_more_is_tried_than_may_be_unreadable(count, tries):
    failed = {}
    assert read_sample(reader(range(count)), 0, count, replace=True, failed=failed) is None
    assert len(failed) == tries


def test_workers_by_default(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(48)))
    assert default_workers(torch.device("cpu")) == 1
    assert default_workers(torch.device("cuda")) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(torch.device("cuda")) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert default_workers(torch.device("cuda")) == 1

import pytest

import isoflop
from isoflop.kernels import available
from isoflop.lab.reproduce import DataFolders
from isoflop.lab.reproduce import forecast as forecasts
from isoflop.lab.reproduce.forecast import forecast, format_forecast, job_flops
from isoflop.lab.reproduce.sources import Training
from isoflop.lab.reproduce.work import TimingWork, execute

CHANGES = {"base_width": 4, "epochs": 2, "update_every": 8}
WIDE = isoflop.SparseWide(sparsity=0.5)


def works(*trainings, data=None):
    return [training.work(0, DataFolders(default=data)) for training in trainings]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transform": WIDE, "method": "static"},
        {"transform": WIDE, "method": "rigl"},
        {"transform": WIDE, "method": "granet"},
        {"sparsity": 0.75, "method": "rigl"},
        {"transform": isoflop.LowRank(width=1.41), "method": "static"},
    ],
)
def test_flops_are_those_of_the_run(tmp_path, options):
    (work,) = works(Training(recipe="digits", changes=CHANGES, **options))
    expected = job_flops(work.job)
    assert execute(work, tmp_path) is None
    summary = work.result(tmp_path)
    assert summary is not None
    exact = options.get("method") != "granet"  # whose ramp may differ by a weight
    assert summary["training_flops"] == pytest.approx(expected, rel=1e-12 if exact else 1e-3)


def test_last_batches_that_are_smaller_count_as_such():
    (work,) = works(Training(recipe="cifar100", changes={"epochs": 2}))
    assert job_flops(work.job) == 6 * 555_468_800 * 50_000 * 2


@pytest.mark.skipif(not available(), reason="needs the kernels")
def test_times_of_compressed_storage_are_those_of_its_kernels(tmp_path, monkeypatch):
    shapes = []
    real = forecasts.accelerate_

    def accelerate(model, **arguments):
        shapes.append(arguments["example_inputs"][0].shape)
        return real(model, **arguments)

    monkeypatch.setattr(forecasts, "accelerate_", accelerate)
    options = {"changes": CHANGES, "transform": WIDE, "method": "set", "storage": "compressed"}
    found = forecast(works(Training(recipe="digits", **options)), tmp_path, calibrate=True)
    assert found["seconds_left"] > 0
    assert shapes == [(64, 1, 8, 8)]


def test_what_is_done_takes_no_time(tmp_path):
    dense = Training(recipe="digits", changes=CHANGES)
    both = works(dense, Training(recipe="digits", changes=CHANGES, transform=WIDE, method="snip"))
    assert execute(both[0], tmp_path) is None
    told = []
    found = forecast(both, tmp_path, calibrate=True, tell=told.append)
    done, left = found["runs"]
    assert (done["done"], done["seconds"]) == (True, None)
    assert not left["done"]
    assert found["seconds_left"] == left["seconds"] > 0
    assert found["flops"] == done["flops"] + left["flops"]
    assert found["flops_left"] == left["flops"]
    assert told == [f"measuring a few steps of {left['run']}"]
    text = format_forecast("Table 0", found, 2)
    assert "2 runs, 1 done" in text
    assert "with 2 at a time" in text


def test_without_data_no_time_is_known(tmp_path):
    training = Training(recipe="fashion-mnist", changes={"base_width": 2})
    found = forecast(works(training, data=str(tmp_path)), tmp_path / "x", calibrate=True)
    assert found["seconds_left"] is None
    assert "No time is known" in format_forecast("", found, 1)
    assert not (tmp_path / "x").exists()


def test_timings_have_no_flops(tmp_path):
    work = TimingWork(arguments=("matmul",), sparsities=(0.5,))
    found = forecast([work], tmp_path, calibrate=True)
    assert found["runs"] == [{"run": work.name, "done": False, "flops": None, "seconds": None}]

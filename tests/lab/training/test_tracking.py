import io
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from isoflop.lab.metrics import ACCURACY
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.lab.training.tracking import Display, Tracker

METRICS = {"epoch": 1, "step": 21, "train_loss": 0.5, "test_accuracy": 91.5, "seconds": 1.25}
COUNTS = {
    "numel": 100, "nnz": 20, "initial_nnz": 20, "from_initial": 10, "grown": 4, "dropped": 4,
    "explored": 30,
}  # fmt: skip
MASKS = {"step": 8, "training_flops": 7000, "layers": {"a": COUNTS, "b": COUNTS}}
SPECTRA = {"step": 21, "network": {"ramanujan_gap": 1.5, "imdb": None}, "layers": {}}


def test_tracker_appends_lines_and_tensorboard(tmp_path):
    run = RunDirectory(tmp_path)
    for epoch in (1, 2):  # as after a resume
        with Tracker(run, 21 * (epoch - 1)) as tracker:
            tracker.log({**METRICS, "epoch": epoch, "step": 21 * epoch})
            assert len(run.metrics()) == epoch  # before it is closed
    assert run.metrics() == [METRICS, {**METRICS, "epoch": 2, "step": 42}]
    assert not run.masks_path.exists()
    assert not run.spectra_path.exists()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("test_accuracy")] == [21, 42]
    assert events.Scalars("train_loss")[0].value == 0.5


def test_masks_and_spectra_are_live_too(tmp_path):
    run = RunDirectory(tmp_path)
    with Tracker(run, 0) as tracker:
        tracker.log_masks(MASKS)
        tracker.log_spectra(SPECTRA)
    assert run.masks() == [MASKS]
    assert run.spectra() == [SPECTRA]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    expected = {
        "masks/density": 0.2, "masks/explored": 0.3, "masks/from_initial": 0.25, "masks/churn": 0.2,
        "training_flops": 7000.0, "spectra/ramanujan_gap": 1.5,
    }  # fmt: skip
    found = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert found == pytest.approx(expected)


def test_display_prints_lines_where_there_is_no_terminal(capsys):
    display = Display(2, 100, 0, ACCURACY, quiet=False)
    with display.shown():
        display.advance(10)
        display.epoch(METRICS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "epoch 1/2  loss 0.5000  accuracy 91.50 %  1.2 s\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_display_shows_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    display = Display(2, 100, 0, ACCURACY, quiet=False)
    with display.shown():
        for _ in range(5):
            display.advance(10)
        display.epoch(METRICS)
    assert "50%" in terminal.getvalue()
    assert "accuracy 91.50 %" in terminal.getvalue()
    terminal.truncate(0)
    quiet = Display(2, 100, 0, ACCURACY, quiet=True)
    with quiet.shown():
        quiet.advance(10)
        quiet.epoch(METRICS)
    assert terminal.getvalue() == ""

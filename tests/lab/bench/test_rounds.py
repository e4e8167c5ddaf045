import statistics

import pytest

from isoflop.lab.bench.contestant import CONTESTANTS
from isoflop.lab.bench.rounds import compete, summarize


def run(case, tmp_path, *names, repeats=3):
    lines = []
    outcome = compete(case, names, repeats=repeats, peers_folder=tmp_path, tell=lines.append)
    return outcome, "\n".join(lines)


def test_contestants_take_turns_and_the_first_round_does_not_count(clockwork, tiny_layer, tmp_path):
    outcome, _ = run(tiny_layer, tmp_path, "slow", "fast")
    assert clockwork[:8] == ["Slow", "Fast", "Fast", "Slow"] * 2
    assert sorted(clockwork[8:]) == ["close Fast", "close Slow"]
    assert outcome["rounds"] == {"slow": [2.0, 3.0, 1.0], "fast": [1.0, 1.5, 0.5]}
    assert outcome["errors"] == {"slow": 0.0, "fast": 0.0}
    assert outcome["failed"] == outcome["skipped"] == outcome["notes"] == {}


def test_those_that_fail_are_out_with_the_reason(clockwork, tiny_layer, tmp_path):
    outcome, told = run(tiny_layer, tmp_path, *CONTESTANTS.names())
    assert outcome["rounds"].keys() == {"slow", "fast"}
    assert outcome["failed"] == {
        "broken": "RuntimeError: out of order",
        "unprepared": "cannot be prepared",
        "wrong": "computes wrong values: relative error 1.0e+00",
    }
    assert outcome["skipped"] == {"absent": "not here"}
    assert "broken is out: RuntimeError: out of order" in told
    assert {"close Broken", "close Unprepared", "close Wrong"} <= set(clockwork)


def test_ratios_are_to_the_fastest_dense_contestant():
    rounds = {"a": [4.0, 2.0, 3.0], "b": [5.0, 1.0, 9.0], "isoflop": [1.5, 2.5, 1.25]}
    figures = summarize(rounds, ["a", "b", "absent"])
    assert figures["dense_is"] == "b"
    assert figures["seconds"] == {"dense": 1.0, "a": 2.0, "b": 1.0, "isoflop": 1.25}
    assert figures["ratio_to_dense"] == {"dense": 1.0, "a": 2.0, "b": 1.0, "isoflop": 1.25}
    assert figures["median"]["isoflop"] == 1.5
    low, _, high = statistics.quantiles([1.5, 2.5, 1.25], n=4, method="inclusive")
    assert figures["spread"]["isoflop"] == pytest.approx((high - low) / 1.5)


def test_without_a_dense_contestant_there_are_no_ratios():
    figures = summarize({"isoflop": [2.0]}, ["a"])
    assert figures["dense_is"] is None
    assert figures["ratio_to_dense"] == {}
    assert figures["seconds"] == {"isoflop": 2.0}
    assert figures["spread"] == {"isoflop": 0.0}

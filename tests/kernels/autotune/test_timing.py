import json
import time

import pytest

from isoflop.errors import CacheWarning
from isoflop.kernels.autotune import timing
from isoflop.kernels.autotune.timing import TimingCache, default_cache_path, measure


@pytest.fixture
def contestants():
    """Two contestants that count how often they run."""
    calls = []
    return {name: (lambda name=name: calls.append(name)) for name in ("dense", "sparse")}, calls


def test_contestants_take_turns(contestants, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    runs, calls = contestants
    assert measure(runs).keys() == {"dense", "sparse"}
    assert calls == ["dense", "sparse"] * (timing.ROUNDS + 1)


def test_the_least_time_counts(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    clock = iter([0.0, *(t for i in range(timing.ROUNDS) for t in (0.0, 9.0 - i)), *[0.0] * 9])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert measure({"only": lambda: None}) == {"only": 9.0 - (timing.ROUNDS - 1)}


def test_times_are_measured_once(contestants, tmp_path):
    runs, calls = contestants
    path = tmp_path / "folder" / "timings.json"
    cache = TimingCache(path)
    times = cache.times({"shape": [1, 2]}, runs)
    cache.save()
    calls.clear()
    again = TimingCache(path)
    assert again.times({"shape": (1, 2)}, runs) == times
    assert not calls
    assert again.times({"shape": (1, 3)}, runs).keys() == times.keys()
    assert calls


def test_processes_add_to_each_others_times(contestants, tmp_path):
    path = tmp_path / "timings.json"
    first, second = TimingCache(path), TimingCache(path)
    for number, cache in enumerate((first, second)):
        cache.times({"layer": number}, contestants[0])
        cache.save()
    assert len(json.loads(path.read_text())) == 2


def test_times_of_more_contestants_replace_those_of_fewer(contestants, tmp_path):
    both, calls = contestants
    path = tmp_path / "timings.json"
    for runs in ({"dense": both["dense"]}, both):
        cache = TimingCache(path)
        assert cache.times({}, runs).keys() == runs.keys()
        cache.save()
    calls.clear()
    assert TimingCache(path).times({}, {"sparse": both["sparse"]}).keys() == {"sparse"}
    assert not calls


NOT_TIMES = ("NaN", "Infinity", "-1", "0", "1" + 400 * "0")
DAMAGED = ["{", "[1]", *(f'{{"key": {{"dense": {n}}}}}' for n in NOT_TIMES), "\x00\xff"]


@pytest.mark.parametrize("text", [*DAMAGED, '{"key": 3}', '{"key": {"dense": "x"}}'])
def test_damaged_files_are_ignored(contestants, tmp_path, text):
    path = tmp_path / "timings.json"
    path.write_text(text)
    with pytest.warns(CacheWarning, match="measured again"):
        cache = TimingCache(path)
    cache.times({}, contestants[0])
    with pytest.warns(CacheWarning):
        cache.save()
    assert list(TimingCache(path).times({}, contestants[0])) == ["dense", "sparse"]


def test_folders_that_cannot_be_written(contestants, tmp_path):
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "timings.json")
    cache.times({}, contestants[0])
    with pytest.warns(CacheWarning, match="ISOFLOP_CACHE"):
        cache.save()


def test_without_a_file(contestants):
    cache = TimingCache(None)
    cache.times({}, contestants[0])
    cache.save()


def test_where_times_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ISOFLOP_CACHE", raising=False)
    assert default_cache_path() == tmp_path / "xdg" / "isoflop" / "timings.json"
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "mine"))
    assert default_cache_path() == tmp_path / "mine" / "timings.json"


def test_users_without_a_home_keep_no_times(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    monkeypatch.delenv("ISOFLOP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_path() is None

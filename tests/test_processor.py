import os
from pathlib import Path

from isoflop.lab.bench import describe_machine
from isoflop.processor import processor_info, processor_name, usable_cores


def test_this_processor():
    assert processor_name()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_systems_that_do_not_tell_which_cores_are_usable(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
    assert describe_machine()["usable_cores"] == os.cpu_count()


def test_processors_are_told_apart(monkeypatch):
    def name(text):
        monkeypatch.setattr(Path, "read_text", lambda _: text)
        return processor_name()

    x86 = "processor : 0\nmodel name : Some CPU\ncpu family : 6\nmodel : 143\n\nprocessor : 1\n"
    assert name(x86) == "Some CPU (family 6, model 143)"
    neoverse, cortex = (
        name(f"processor : 0\nCPU implementer : 0x41\nCPU part : {part}\n") for part in ("1", "2")
    )
    assert neoverse != cortex


def test_systems_without_information(monkeypatch):
    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert processor_info() == {}
    assert processor_name()


def test_nothing_asks_the_system_past_the_helper():
    source = Path(__file__).parents[1] / "src" / "isoflop"
    users = [p.name for p in source.rglob("*.py") if "sched_getaffinity" in p.read_text()]
    assert users == ["processor.py"]

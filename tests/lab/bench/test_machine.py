import json
import os

import torch

from isoflop.lab.bench import describe_machine, format_machine


def test_the_machine_is_described():
    machine = describe_machine()
    json.dumps(machine)
    assert machine["cpu"]
    assert machine["cores"] == os.cpu_count()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["memory"] is None or machine["memory"] > 1 << 28
    assert all(size >= 1 << 10 for size in machine["caches"].values())
    line = format_machine(machine)
    assert machine["cpu"] in line
    assert torch.__version__ in line


def test_a_loaded_machine_is_busy(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert describe_machine()["busy"]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0), raising=False)
    assert not describe_machine()["busy"]

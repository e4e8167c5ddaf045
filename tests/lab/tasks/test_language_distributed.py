import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from tests.lab.tasks.language_worker import run

from isoflop.lab.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed training")
def test_two_processes_with_accumulation_end_as_one_without(pile, tmp_path):
    run(tmp_path / "alone", pile)
    worker = ("tests.lab.tasks.language_worker", str(tmp_path / "together"), str(pile))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", *worker],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("alone", "together")
    )
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("steps", "nnz", "training_flops", "data_passes", "skipped"):
        assert one[key] == two[key], key
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    first, second = (load_checkpoint(tmp_path / name) for name in ("alone", "together"))
    assert first is not None
    assert second is not None
    assert first["data"] == second["data"]

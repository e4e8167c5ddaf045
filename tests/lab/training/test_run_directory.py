import json
import subprocess
import sys

import pytest

from isoflop.errors import RunDirectoryError
from isoflop.lab.training.run_directory import RunDirectory

CONFIG = {"recipe": {"lr": 0.1, "milestones": (1, 2)}, "seed": 0, "data": "a"}


def start(path, config=CONFIG):
    run = RunDirectory(path)
    with run.claim(config, resume=False):
        pass
    return run


def test_check_writes_nothing(tmp_path):
    RunDirectory(tmp_path / "new").check(CONFIG, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_second_run_is_refused_unless_resumed(tmp_path):
    run = start(tmp_path / "run")
    before = run.config_path.read_bytes()
    for attempt in (run.check, lambda *a, **k: run.claim(*a, **k).__enter__()):
        with pytest.raises(RunDirectoryError, match="--resume"):
            attempt({**CONFIG, "seed": 1}, resume=False)
    assert run.config_path.read_bytes() == before
    run.check(CONFIG, resume=True)


def test_resume_with_other_options_names_them(tmp_path):
    run = start(tmp_path)
    changed = {"recipe": {"lr": 0.2, "milestones": (1, 2)}, "seed": 0, "data": "b"}
    with pytest.raises(RunDirectoryError, match=r"recipe\.lr: 0\.1 became 0\.2") as error:
        run.check(changed, resume=True)
    assert "data" not in str(error.value)
    run.check({**CONFIG, "data": "elsewhere"}, resume=True)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
            RunDirectory(tmp_path).check(CONFIG, resume=resume)
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "thesis.tex").check(CONFIG, resume=False)


def test_directory_of_a_process_killed_at_its_start_is_empty(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-half").write_text("{")
    run = start(tmp_path)
    assert json.loads(run.config_path.read_text())["seed"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize("resume", [False, True])
def test_live_run_is_left_alone(tmp_path, resume):
    code = (
        "import sys; from isoflop.lab.training.run_directory import RunDirectory\n"
        f"with RunDirectory({str(tmp_path)!r}).claim({CONFIG!r}, resume=False):\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(RunDirectoryError, match="Another process"):
            RunDirectory(tmp_path).check(CONFIG, resume=resume)
        process.kill()
    RunDirectory(tmp_path).check(CONFIG, resume=True)  # a killed process holds no lock


def test_metrics_survive_a_line_cut_short(tmp_path):
    run = start(tmp_path)
    for path, read in (
        (run.metrics_path, run.metrics),
        (run.masks_path, run.masks),
        (run.spectra_path, run.spectra),
    ):
        path.write_bytes(b'{"step": 0}\n{"step": 2}\n7\n\xff\n{"step": 3, "lo')
        assert [line["step"] for line in read()] == [0, 2]
        run.cut(1)
        assert path.read_text() == '{"step": 0}\n'
        run.cut(-1)
        assert path.read_text() == ""


def test_damaged_config(tmp_path):
    run = start(tmp_path)
    run.config_path.write_text("{")
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        run.check(CONFIG, resume=True)

import numpy as np
import pytest

from isoflop.errors import RunDirectoryError
from isoflop.lab.report import group_runs, load_run


def test_a_complete_run(trained):
    run = load_run(trained[1])
    assert run.problems == ()
    assert run.task == "digits"
    assert [line["epoch"] for line in run.metrics] == [1, 2]
    assert run.plan is not None
    assert {layer.parameter for layer in run.plan.sparse_layers} == run.masks.keys()
    for name, masks in run.masks.items():
        final = run.changes[-1]["layers"][name]
        assert masks["present"].sum() == final["nnz"]
        assert masks["ever"].sum() == final["explored"]
        assert (masks["present"] != masks["initial"]).sum() == final["from_initial"]
        assert masks["present"].dtype == np.bool_


def test_a_dense_run_has_no_masks(trained):
    run = load_run(trained[0])
    assert run.masks == {}
    assert run.changes == run.spectra == []
    assert run.plan is not None
    assert run.plan.sparse_layers == ()


def test_runs_that_are_cut_short_say_so(make_run):
    path = make_run("a", 0, 90.0)
    first = (path / "metrics.jsonl").read_text().splitlines()[0]
    (path / "metrics.jsonl").write_text(first + '\n{"epoch": 2, "st')
    run = load_run(path)
    assert len(run.metrics) == 1
    assert run.problems == ("metrics.jsonl is cut short: it holds 1 of 2 epochs.",)
    (path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe')
    assert load_run(path).metrics == []
    (path / "metrics.jsonl").unlink()
    (path / "summary.json").unlink()
    assert "0 of 2 epochs are done" in load_run(path).problems[0]


@pytest.mark.parametrize("text", ["{", '{"format_version": 0}', '{"format_version": 1}'])
def test_a_damaged_plan_or_summary_is_a_problem(make_run, text):
    path = make_run("a", 0, 90.0)
    (path / "plan.json").write_text(text)
    (path / "summary.json").write_text("{")
    run = load_run(path)
    assert run.plan is None
    assert run.summary is None
    assert "summary.json cannot be read" in run.problems[0]
    assert "plan.json cannot be used" in run.problems[1]


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run"):
        load_run(tmp_path)
    for text in ("{", '{"name": "web-app"}', '{"recipe": 7, "transform": 1, "method": 2}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunDirectoryError, match=r"config\.json"):
            load_run(tmp_path)


def test_a_damaged_checkpoint_is_an_error(make_run):
    path = make_run("a", 0, 90.0)
    (path / "checkpoint-000002").mkdir()
    (path / "checkpoint-000002" / "state.pt").write_bytes(b"PK")
    with pytest.raises(RunDirectoryError, match="damaged"):
        _ = load_run(path).masks


def test_runs_with_and_without_spectra_are_of_one_group(make_run):
    a, b = make_run("a", 0, 90.0, spectra=None), make_run("b", 1, 90.0, spectra="every=1epoch")
    (group,) = group_runs([load_run(a), load_run(b)])
    assert [run.path for run in group.runs] == [a, b]


def test_groups_of_one_name_are_told_apart(make_run):
    runs = [make_run("a", 0, 90.0), make_run("b", 0, 90.0, epochs=4), make_run("c", 1, 90.0)]
    groups = group_runs(map(load_run, runs))
    assert [group.label for group in groups] == ["Dense (epochs=2)", "Dense (epochs=4)"]
    assert [group.index for group in groups] == [0, 1]
    assert len(groups[0].runs) == 2


def test_one_seed_twice(make_run):
    runs = [make_run("a", 0, 90.0), make_run("b", 0, 91.0)]
    with pytest.raises(RunDirectoryError, match="same seed") as error:
        group_runs(map(load_run, runs))
    assert all(str(run) in str(error.value) for run in runs)


@pytest.mark.parametrize("option", ["spectra", "backbone_run"])
def test_one_seed_twice_with_another_option_is_of_two_groups(make_run, option):
    """As of table 7 and figure 4, which measures spectra on the way."""
    runs = [make_run(f"{i}{j}", j, 90.0, **{option: x}) for i, x in enumerate("xy") for j in (0, 1)]
    runs.append(make_run("z", 2, 90.0, **{option: None}))
    groups = group_runs(map(load_run, runs))
    assert [[run.path for run in group.runs] for group in groups] == [runs[:2], runs[2:4], runs[4:]]
    assert [g.label for g in groups] == [f"Dense ({option}=x)", f"Dense ({option}=y)", "Dense"]

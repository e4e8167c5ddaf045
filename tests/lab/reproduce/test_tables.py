"""Every table and figure in every preset."""

import collections
import dataclasses
import itertools

import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.lab.recipes import RECIPES
from isoflop.lab.report.figures.paper_times import PAPER_TIMES
from isoflop.lab.reproduce import PRESETS, TABLES, DataFolders, get_preset, paper_rows, presets
from isoflop.lab.reproduce.grid import Row
from isoflop.lab.reproduce.results import with_needs, works_of
from isoflop.lab.reproduce.sources import Computed, Evaluation, Missing, Timing, Training
from isoflop.lab.reproduce.tables.table14 import widths
from isoflop.lab.reproduce.work import RunWork
from isoflop.lab.training.harness import LEADERBOARD

FIGURES = {name for name in TABLES.names() if name.startswith("figure")}
CASES = list(itertools.product(TABLES.names(), PRESETS.names()))


def grid(table, preset, **changes):
    return TABLES.get(table)(get_preset(preset, **changes))


def trainings(rows):
    return [row.source for row in rows if isinstance(row.source, Training)]


def checked(training):
    """Return the run of a training, of another recipe in place of one that is not there yet."""
    if training.backbone is not None:
        training = dataclasses.replace(training, backbone=checked(training.backbone))
    if training.recipe in RECIPES.names():
        return training
    with pytest.raises(UnknownNameError, match=f"Unknown recipe '{training.recipe}'"):
        training.work(0, DataFolders())
    return dataclasses.replace(training, recipe="digits")


def test_all_tables_and_figures_are_there():
    assert TABLES.names() == [
        "table2", "table4", "table5", "table6", "table7", "table8", "table9", "table10", "table11",
        "table12", "table13", "table14", "table15", "figure1", "figure3", "figure4", "figure5",
        "figure6", "figure7",
    ]  # fmt: skip


@pytest.mark.parametrize(("table", "preset"), CASES)
def test_contract(table, preset):
    found = grid(table, preset)
    assert found.title.lower().startswith(f"{table[:-1] if table[-2].isalpha() else table[:-2]} ")
    labels = [tuple(sorted(row.labels.items())) for row in found.rows]
    assert len(set(labels)) == len(labels)
    for row in found.rows:
        if isinstance(row.source, Training):
            (work,) = with_needs([checked(row.source).work(0, DataFolders())])[-1:]
            assert isinstance(work, RunWork)
            assert bool(row.source.deviation) == (preset != "full")
        elif isinstance(row.source, Missing):
            assert row.paper is not None
            assert row.source.reason
        elif isinstance(row.source, Evaluation):
            assert preset == "full"
            work = row.source.work(0, DataFolders())
            assert with_needs([work]) == [work.training, work]
        else:
            assert isinstance(row.source, (Timing, Computed))
    if preset == "full":
        assert not any(row.source.deviation for row in found.rows)


@pytest.mark.parametrize("table", ["table5", "table11", "table12"])
def test_scenes_stand_in_for_transfer(table):
    rows = grid(table, "cpu").rows
    assert rows
    for training, row in zip(trainings(rows), rows, strict=True):
        work = training.work(0, DataFolders())
        assert work.job.recipe.dataset == "fashion-scenes"
        assert work.backbone is not None
        assert work.backbone.job.recipe.name == "fashion-mnist"
        assert (work.backbone.job.sparsity or 0) == 0
        transform = work.backbone.job.transform
        assert (0 if transform is None else transform.sparsity) == row.labels.get("sparsity", 0)


def test_storage(monkeypatch):
    """The `cpu` preset trains non-zeros only, where the method and the pattern can."""

    def storages(preset):
        rows = [*grid("table2", preset).rows, *grid("table10", preset).rows]
        return {
            str(row.labels.get("structure") or row.labels["method"]): work.job.storage
            for row in rows
            if isinstance(row.source, Training)
            for work in [row.source.work(0, DataFolders())]
        }

    assert {*storages("full").values()} == {"masked"}
    monkeypatch.setattr(presets, "available", lambda: True)
    monkeypatch.setattr(presets.torch.cuda, "is_available", lambda: False)
    found = storages("cpu")
    masked = {name for name, storage in found.items() if storage == "masked"}
    assert masked == {"dense", "low rank", "4:8-T", "2:8-T", "1:8-T"}
    monkeypatch.setattr(presets, "available", lambda: False)
    assert {*storages("cpu").values()} == {"masked"}


@pytest.mark.parametrize(("table", "preset"), [c for c in CASES if c[0] not in FIGURES])
def test_every_number_of_the_paper_is_in_one_row(table, preset):
    rows = [row for row in grid(table, preset).rows if row.paper is not None]
    printed = collections.Counter(
        (tuple(row.labels.items()), row.value, row.std) for row in paper_rows(table)
    )
    ours = collections.Counter(
        (tuple(row.labels.items()), row.paper, row.paper_std) for row in rows
    )
    assert ours == printed


def names(rows):
    works = [work for row in rows for work in works_of(row, 1, DataFolders())]
    return {work.name for work in works}


def test_tables_share_runs():
    two = names(grid("table2", "full").rows)
    assert len(two) == 22
    wide = [row for row in grid("table8", "full").rows if row.labels["transform"] == "wide"]
    assert len(names(wide)) == 3
    assert names(wide) <= two
    ten = grid("table10", "full").rows
    unstructured = [row for row in ten if row.labels["structure"] == "unstructured"]
    assert names(unstructured) == names(wide)
    assert names(ten) <= names(grid("figure3", "full").rows)
    seven = [row for row in grid("table7", "full").rows if row.labels["branch"] == "nonlinear"]
    assert names(seven) <= names(grid("figure3", "full").rows)
    assert names(grid("figure4", "full").rows) == names(grid("figure6", "full").rows)


def test_longer_schedules_cost_the_same():
    epochs = {
        (row.labels["schedule"], row.labels["sparsity"]): work.job.recipe.epochs
        for row in grid("table8", "full").rows
        for work in works_of(row, 1, DataFolders())
        if isinstance(work, RunWork)
    }
    assert {s: epochs["longer", s] for s in (0.5, 0.75, 0.9)} == {0.5: 400, 0.75: 800, 0.9: 2000}
    assert {epochs["usual", s] for s in (0.5, 0.75, 0.9)} == {200}
    (row, *_) = grid("table8", "cpu", epochs=3).rows
    assert row.labels["sparsity"] == 0.5
    (work,) = works_of(row, 1, DataFolders())
    assert isinstance(work, RunWork)
    assert work.job.recipe.epochs == 6
    deviation = "fashion-mnist (schedule_by step) in place of cifar100; epochs 3"
    assert deviation in row.source.deviation


def test_a_width_is_for_models_that_have_one():
    rows = {row.labels["model"]: row for row in grid("table9", "cpu", base_width=4).rows}
    widths = {}
    for model in ("mobilenetv2", "botnet50"):
        (work,) = works_of(rows[model], 1, DataFolders())
        assert isinstance(work, RunWork)
        widths[model] = work.job.recipe.base_width
    assert widths == {"mobilenetv2": None, "botnet50": 4}


def test_masks_change_as_often_as_asked_and_batches_are_as_large():
    # GraNet's own interval is the preset's; 100 is what recipes have without being asked.
    for steps in (25, 100):
        changes = {"update_every": steps, "batch_size": 64}
        for training in trainings(grid("table2", "cpu", **changes).rows):
            (work,) = works_of(Row(labels={}, source=training), 1, DataFolders())
            assert isinstance(work, RunWork)
            assert work.job.recipe.batch_size == 64
            if training.method in ("set", "rigl", "granet"):
                assert work.job.method.update_every == steps  # pyright: ignore
    assert "update_every 100; batch_size 64" in training.deviation


def test_tokens_are_for_language_models():
    (training, *_) = trainings(grid("table6", "cpu", tokens=2**20).rows)
    assert training.work(0, DataFolders()).job.recipe.tokens == 2**20
    (training, *_) = trainings(grid("table2", "cpu", tokens=2**20).rows)
    assert training.work(0, DataFolders()).job.recipe.tokens is None


def test_efficient_networks_have_cosine_annealing():
    for training in trainings(grid("table9", "full").rows):
        work = training.work(0, DataFolders())
        assert work.job.recipe.dataset == "cifar100"
        assert work.job.recipe.schedule == "cosine"
        assert work.job.recipe.epochs == 200


def test_transfers_have_the_backbones_of_table_4():
    four = {
        row.labels.get("sparsity", 0.0): row.source
        for row in grid("table4", "full").rows
        if row.labels["model"] == "resnet18" and row.labels["transform"] != "parallel"
    }
    for table in ("table5", "table11", "table12"):
        for row in grid(table, "full").rows:
            assert isinstance(row.source, Training)
            assert row.source.backbone == four[row.labels["sparsity"]]
            assert row.source.measure == row.labels["measure"]


def test_a_stand_in_has_one_number():
    found = grid("table11", "smoke").rows
    assert {row.labels["measure"] for row in found if isinstance(row.source, Training)} == {"ap"}
    assert sum(isinstance(row.source, Missing) for row in found) == 20


def test_sizes_are_computed():
    values = {
        row.labels["property"]: row.source.value()
        for row in grid("table13", "smoke").rows
        if isinstance(row.source, Computed)
    }
    assert values == {
        "parameters": 124_439_808 + 1024 * 768,  # GPT-2 with twice the context
        "layers": 12, "d_model": 768, "heads": 12, "d_head": 64,
        "batch size": 256, "learning rate": 6e-4, "tokens": 2.5e9,
    }  # fmt: skip


def test_language_models_are_evaluated_by_the_leaderboard():
    measures = {row.labels["measure"] for row in grid("table15", "full").rows}
    assert measures == {*LEADERBOARD, "leaderboard_mean", "perplexity"}
    assert names(grid("table6", "full").rows) == names(grid("table15", "full").rows)


def test_widths_of_a_sparse_wide_gpt():
    assert widths(0.0) == {"d_model": 768, "d_ff": 3072}
    assert widths(0.75) == {"d_model": 1536, "d_ff": 6144}
    assert widths(0.5) == {"d_model": 1086, "d_ff": 4344}


def test_timings_of_the_paper():
    rows = grid("figure5", "full").rows
    printed = {
        (workload, system, sparsity, time)
        for workload, systems in PAPER_TIMES.items()
        for system, times in systems.items()
        for sparsity, time in times.items()
    }
    ours = [(*row.labels.values(), row.paper) for row in rows if row.paper is not None]
    assert set(ours) == printed
    assert len(ours) == len(printed) == 6
    sources = {row.labels["workload"]: row.source for row in rows}
    assert isinstance(sources["inference"], Timing)
    command = "inference --model torchvision:resnet18 --batch 64 --image 224"
    assert " ".join(sources["inference"].arguments) == command


def test_reading_of_timings():
    result = {
        "workload": {"sparsity": 0.5},
        "seconds": {"masked": 4.0, "isoflop": 2.0},
        "ratio_to_dense": {"masked": 3.0, "isoflop": 1.5},
        "skipped": {"deepsparse": "not installed"},
        "failed": {},
    }
    options = {"arguments": ("inference",), "sparsities": (0.5,), "sparsity": 0.5}
    ours = Timing(**options, contestant="isoflop", quantity="relative time")
    assert ours.read([result]) == 1.5
    assert dataclasses.replace(ours, quantity="speed-up").read([result]) == 2.0
    with pytest.raises(IsoflopError, match="deepsparse was not measured: not installed"):
        dataclasses.replace(ours, contestant="deepsparse").read([result])

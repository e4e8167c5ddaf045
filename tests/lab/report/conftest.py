"""Run directories to report on."""

import dataclasses
import json

import pytest

import isoflop
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train


def counts(nnz, from_initial, grown, explored):
    return {
        "numel": 100, "nnz": nnz, "initial_nnz": 20, "from_initial": from_initial, "grown": grown,
        "dropped": grown, "explored": explored,
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path):
    """Write a run directory with chosen results."""

    def make(
        name,
        seed,
        accuracy,
        *,
        transform=None,
        sparsity=None,
        method="dense",
        recipe="digits",
        epochs=2,
        **more,
    ):
        path = tmp_path / name
        path.mkdir()
        config = {
            "recipe": {"name": recipe, "epochs": epochs},
            "transform": transform,
            "transform_config": {"sparsity": sparsity} if transform else None,
            "method": method,
            "sparsity": sparsity,
            "seed": seed,
            "data": name,
            **more,
        }
        summary = {
            "recipe": recipe,
            "seed": seed,
            "epochs": epochs,
            "accuracy": accuracy,
            "macs": 1001 if transform else 1000,
            "dense_macs": 1000,
            "nnz": 50,
            "numel": 200 if transform else 50,
            "training_flops": 10**9 + seed,
            "seconds": 2.0 + seed,
        }
        metrics = [
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "train_loss": 1.0 / epoch,
                "test_accuracy": accuracy - epochs + epoch,
                "density": 1.0,
                "training_flops": 10**8 * epoch,
            }
            for epoch in range(1, epochs + 1)
        ]
        (path / "config.json").write_text(json.dumps(config))
        (path / "summary.json").write_text(json.dumps(summary))
        write_lines(path / "metrics.jsonl", metrics)
        if transform and method != "dense":
            changes = [
                {"step": 0, "layers": {"w": counts(20, 0, 0, 20)}},
                {"step": 8, "layers": {"w": counts(20, 10, 5, 25)}},
            ]
            write_lines(path / "masks.jsonl", changes)
            spectra = [
                {"step": step, "network": dict.fromkeys(MEASURES, step / 10 + seed)}
                for step in (0, 10, 20)
            ]
            write_lines(path / "spectra.jsonl", spectra)
        return path

    return make


MEASURES = ("ramanujan_gap", "imdb", "imdb_normalized", "spectral_gap", "imsg")


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Directories of real runs: dense, and two seeds of RigL with spectra."""
    recipe = dataclasses.replace(get_recipe("digits"), base_width=4, epochs=2, update_every=8)
    folder = tmp_path_factory.mktemp("trained")
    train(recipe, folder / "dense", quiet=True)
    wide = isoflop.SparseWide(sparsity=0.5)
    for seed in (0, 1):
        out = folder / f"rigl{seed}"
        options = {"method": "rigl", "spectra": "every=1epoch", "quiet": True}
        train(recipe, out, transform=wide, seed=seed, **options)
    return [folder / "dense", folder / "rigl0", folder / "rigl1"]

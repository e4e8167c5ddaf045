import dataclasses

import pytest
import torch

import isoflop
from isoflop.lab.recipes import get_recipe
from isoflop.lab.tasks import TASKS
from isoflop.lab.training import RunDirectory, build_method
from isoflop.lab.training.checkpoint import Progress, load_checkpoint
from isoflop.lab.training.distributed import build_accelerator
from isoflop.lab.training.setup import Job, build
from isoflop.lab.training.trainer import Trainer

RECIPE = dataclasses.replace(get_recipe("digits"), base_width=4, epochs=2, update_every=8)


@pytest.fixture
def trainer(tmp_path):
    """Return trainers of one run, each with a model of its own."""

    def make():
        accelerator = build_accelerator(None, shard=False)
        job = Job(
            recipe=RECIPE,
            transform=isoflop.SparseWide(sparsity=0.75),
            method=build_method("rigl", RECIPE),
            sparsity=None,
            allocation="uniform",
            pattern="unstructured",
            storage="masked",
            scope="model",
            seed=0,
            data=None,
            accumulate=2,
        )
        data = TASKS.get(RECIPE.task).load(RECIPE, None)
        batches = data.train_batches(RECIPE.batch_size, seed=0, epoch=0)
        steps = RECIPE.steps_per_epoch(data.samples) * RECIPE.epochs
        setup = build(job, steps, accelerator.device, batches)
        return Trainer(job, setup, data, RunDirectory(tmp_path), accelerator, quiet=True)

    return make


def test_a_step_takes_every_part_of_the_batch(trainer):
    one = trainer()
    x, y = torch.randn(64, *RECIPE.input_shape), torch.randint(10, (64,))
    before = [p.detach().clone() for p in one.model.parameters()]
    losses = one.train_step(x, y, 64)
    assert [int(samples) for _, samples in losses] == [32, 32]
    assert all(loss > 0 for loss, _ in losses)
    assert one.progress.step == 1
    assert one.progress.training_flops > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))
    assert all(p.grad is None for p in one.model.parameters())


def test_the_best_value_is_kept(trainer):
    one = trainer()
    one.progress.best = 200.0
    one.evaluate()
    assert one.progress.measures["accuracy"] <= 100.0
    assert one.progress.best == 200.0


def test_another_trainer_goes_on_where_one_has_saved(trainer, tmp_path):
    one = trainer()
    assert not one.resumed
    one.fit(1)
    two = trainer()
    assert two.resumed
    assert two.progress == one.progress != Progress()
    assert two.progress.epoch == 1
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name]), name
    two.progress.step = 0
    two.load()
    assert two.progress == one.progress
    summary = two.fit(2)
    assert summary["epochs"] == 2
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["progress"] == dataclasses.asdict(two.progress)

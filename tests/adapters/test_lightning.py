"""Two epochs with Lightning, through and interrupted."""

import pytest
import torch
import torch.nn.functional as F

lightning = pytest.importorskip("lightning")

from isoflop.adapters.lightning import SparsifierCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):
    def __init__(self, build):
        super().__init__()
        self.model, self.optimizer, self.sparsifier = build()

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return self.optimizer


def train(build, batches, folder, epochs, resume=None):
    module = Module(build)
    saver = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, filename="last")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[SparsifierCallback(module.sparsifier), saver],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=8)
    trainer.fit(module, loader, ckpt_path=resume, weights_only=False)
    return module


def test_a_resumed_run_equals_an_uninterrupted_one(build, batches, tmp_path, check):
    whole = train(build, batches, tmp_path / "whole", 2)
    check(whole.model, whole.sparsifier)
    train(build, batches, tmp_path / "parts", 1)
    resumed = train(build, batches, tmp_path / "parts", 2, tmp_path / "parts" / "last.ckpt")
    check(resumed.model, resumed.sparsifier, whole.model)
    assert resumed.sparsifier.history == whole.sparsifier.history

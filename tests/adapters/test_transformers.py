"""Two epochs with the trainer of transformers, through and interrupted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop

transformers = pytest.importorskip("transformers")

from isoflop.adapters.transformers import FILE, SparsifierCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class WithLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, labels):
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Dictionaries(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        x, y = self.batches[index]
        return {"x": x, "labels": y}


def train(build, batches, folder, *, accumulate=1, stop=None, resume=None, callback=True):
    model, optimizer, sparsifier = build()

    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = stop is not None and state.epoch >= stop

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
        save_strategy="epoch",
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=1,
    )
    trainer = transformers.Trainer(
        WithLoss(model),
        arguments,
        train_dataset=Dictionaries(batches),
        optimizers=(optimizer, None),
        callbacks=[Stop(), *([SparsifierCallback(sparsifier)] if callback else [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, sparsifier


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(build, batches, tmp_path, check, accumulate):
    model, sparsifier = train(build, batches, tmp_path / "whole", accumulate=accumulate)
    check(model, sparsifier)
    train(build, batches, tmp_path / "parts", accumulate=accumulate, stop=1)
    assert (tmp_path / "parts" / "checkpoint-6" / FILE).exists()
    resumed, other = train(build, batches, tmp_path / "parts", accumulate=accumulate, resume=True)
    check(resumed, other, model)
    assert other.history == sparsifier.history


def test_a_checkpoint_without_the_state_is_refused(build, batches, tmp_path):
    train(build, batches, tmp_path, stop=1, callback=False)
    with pytest.raises(isoflop.RunDirectoryError, match="holds no state of a sparsifier"):
        train(build, batches, tmp_path, resume=True)

"""Two epochs with Accelerate, which saves a sparsifier by itself, through and interrupted."""

import pytest
import torch
import torch.nn.functional as F

accelerate = pytest.importorskip("accelerate")


def train(build, batches, folder, epochs, start=0):
    model, optimizer, sparsifier = build()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(batches, batch_size=4)
    prepared, wrapped, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(sparsifier)
    if start:
        accelerator.load_state(str(folder))
    for _ in range(start, epochs):
        for x, y in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(F.cross_entropy(prepared(x), y))
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                wrapped.step()
                wrapped.zero_grad()
    accelerator.save_state(str(folder))
    return model, sparsifier


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_equals_an_uninterrupted_one(build, batches, tmp_path, check):
    model, sparsifier = train(build, batches, tmp_path / "whole", 2)
    check(model, sparsifier)
    train(build, batches, tmp_path / "parts", 1)
    resumed, other = train(build, batches, tmp_path / "parts", 2, start=1)
    check(resumed, other, model)
    assert other.history == sparsifier.history

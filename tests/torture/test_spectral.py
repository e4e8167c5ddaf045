"""Spectral measures are those of the dense matrices, by numpy."""

import numpy as np
from tests.torture.checks import attempt, every_habit
from tests.torture.habit import Habit
from tests.torture.training import sparsified

from isoflop import spectral


@every_habit
def test_analyze(habit: Habit):
    made = sparsified(habit, "masked")
    if made is None:
        return
    model, _, sparsifier = made
    layers = attempt(habit, "spectral", lambda: spectral.analyze(model), model)
    if layers is None:
        return
    assert layers.keys() == sparsifier.masks.keys()
    for name, spectrum in layers.items():
        mask, weight = sparsifier.masks[name].numpy(), model.get_parameter(name).detach()
        assert spectrum.edges == mask.sum()
        if spectrum.ramanujan_gap is None:
            assert spectrum.skipped
        elif weight.ndim == 2:
            values = np.linalg.svd(mask.astype(float), compute_uv=False)
            degree = 2 * mask.sum() / (mask.any(0).sum() + mask.any(1).sum())
            bound = 2 * np.sqrt(degree - 1)
            assert np.isclose(spectrum.ramanujan_gap, bound - values[1])
            if not weight.is_complex():
                weight = weight.float()  # numpy knows no bfloat16
            values = np.linalg.svd(weight.abs().numpy(), compute_uv=False)
            assert spectrum.spectral_gap is not None
            assert np.isclose(spectrum.spectral_gap, values[0] - values[1], rtol=1e-4)

"""Lightning."""

from typing import Any

import lightning

from isoflop.sparsity import Sparsifier


class SparsifierCallback(lightning.Callback):
    """Keeps the state of a sparsifier in Lightning's checkpoints, so that a resumed run is exact.

    Lightning loads weights before it asks for optimizers, and masks must be there by then. So make
    the optimizer where the module is made, sparsify there, and return it later:

    ```python
    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, plan = isoflop.transform(...)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.sparsifier = isoflop.sparsify(
                self.model, self.optimizer, isoflop.RigL(), plan, total_steps=10_000
            )

        def configure_optimizers(self):
            return self.optimizer


    trainer = lightning.Trainer(callbacks=[SparsifierCallback(module.sparsifier)])
    ```

    Args:
        sparsifier: The sparsifier.
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self.sparsifier = sparsifier

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sparsifier, for a checkpoint."""
        return self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.sparsifier.load_state_dict(state_dict)

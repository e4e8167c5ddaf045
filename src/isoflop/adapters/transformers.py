"""The trainer of Hugging Face transformers."""

import io
from pathlib import Path
from typing import Any

import torch
import transformers

from isoflop.errors import RunDirectoryError
from isoflop.files import write_bytes
from isoflop.sparsity import Sparsifier

FILE = "sparsifier.pt"
"""File of a checkpoint folder that holds the state."""


class SparsifierCallback(transformers.TrainerCallback):
    """Keeps the state of a sparsifier in the checkpoints of `transformers.Trainer`.

    ```python
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = isoflop.sparsify(model, optimizer, isoflop.RigL(), plan, total_steps=10_000)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        optimizers=(optimizer, None),
        callbacks=[SparsifierCallback(sparsifier)],
    )
    trainer.train()  # or trainer.train(resume_from_checkpoint=True)
    ```

    Args:
        sparsifier: The sparsifier.
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self.sparsifier = sparsifier

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint that was just written."""
        if state.is_world_process_zero:
            buffer = io.BytesIO()
            torch.save(self.sparsifier.state_dict(), buffer)
            write_bytes(_folder(args, state) / FILE, buffer.getvalue())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue from the checkpoint that the trainer resumes from, if it does.

        Raises:
            RunDirectoryError: The checkpoint was written without this callback.
        """
        if not state.global_step:
            return
        path = _folder(args, state) / FILE
        if not path.exists():
            raise RunDirectoryError(
                f"The checkpoint {path.parent} holds no state of a sparsifier. Resume from one that "
                "was written with this callback, in the trainer's output_dir."
            )
        self.sparsifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"

"""The process that checks one model, and dies with it if it must."""

import os

# Before any library is imported: no check may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import contextlib  # noqa: E402
import importlib  # noqa: E402
import logging  # noqa: E402
import warnings  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from isoflop.zoo.check import Check  # noqa: E402

warnings.simplefilter("ignore")
for _library in ("timm", "torchvision", "transformers"):
    # Once for all models: the processes are forked off one that has imported them.
    with contextlib.suppress(ImportError):
        importlib.import_module(_library)


def main(connection: Any, spec: str, config: Any) -> None:
    """Check a model and send the stages on the way and the result at last."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        with contextlib.redirect_stderr(null):
            result = Check(spec, config, lambda name: connection.send(("stage", name))).run()
    connection.send(("result", result))
    connection.close()

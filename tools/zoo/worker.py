"""The process that checks one model, and dies with it if it must.

Importing this module imports the libraries of models, once for all the processes that are forked
off the one that did.
"""

import contextlib
import importlib
import logging
import os
import warnings
from multiprocessing.connection import Connection

# Before the libraries are imported: no check may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch

from isoflop.transforms import Transform
from tools.zoo.check import check

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _library in ("timm", "torchvision", "transformers"):
        with contextlib.suppress(ImportError):
            importlib.import_module(_library)


def main(connection: Connection, spec: str, config: Transform) -> None:
    """Check a model; send the name of each stage on the way and the result at last."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        result = check(spec, config, connection.send)
    connection.send(result)
    connection.close()

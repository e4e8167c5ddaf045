"""A peer for tests, in the place of an interpreter; how it behaves depends on its folder's name."""

import json
import sys
from pathlib import Path

import numpy as np

# peers/NAME/bin/python runs this file with its own path as the first argument.
behaviour = Path(sys.argv[1]).parents[1].name


def answer(**values):
    print(json.dumps(values), flush=True)


folder = Path()
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "prepare":
        folder = Path(request["folder"])
        if behaviour == "openvino":
            print("no such instruction", file=sys.stderr)
            sys.exit(3)
        assert request["threads"] == 1
        answer(version=f"fake {request['peer']}")
    elif request["op"] == "outputs":
        with np.load(folder / "layer.npz") as arrays:
            x, weight, bias = arrays["x"], arrays["weight"], arrays["bias"]
        output = x @ weight.T + bias
        if behaviour == "sparseprop":
            output[0, 0] += 1.0
        np.savez(folder / "outputs.npz", output=output)
        answer()
    else:
        answer(seconds=1e-9)

"""The command `isoflop export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from isoflop.lab.cli.output import print_json, shape_of


@dataclass(kw_only=True)
class Export:
    """Write a trained model as a file for use: isoflop's own, or a program for other engines."""

    model: tyro.conf.Positional[Path]
    """Run directory, or a file that `isoflop.save` or `--format safetensors` wrote."""
    out: Path
    """File to write."""
    format: Literal["safetensors", "onnx", "pt2"] = "safetensors"
    """`safetensors` keeps sparse weights without zeros; `onnx` and `pt2` have zeros in place."""
    input: str | None = None
    """Shape of the example input of `onnx` and `pt2`, batch first; by default the model's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Write the file and print its size."""
        from isoflop.io import export, save
        from isoflop.io.file import read_model
        from isoflop.lab.training import load_run
        from isoflop.model_specs import example_inputs

        if self.model.is_dir():
            model, plan, source = load_run(self.model)
        else:
            model, plan, source = read_model(self.model)
        if self.format == "safetensors":
            save(model, self.out, plan=plan, source=source)
        else:
            # A batch of two, as exporters take a size of one for a constant.
            inputs = source.example_inputs(model, batch=2)
            if self.input:
                inputs = example_inputs(source.spec, shape_of(self.input))
            export(model, self.out, format=self.format, example_inputs=inputs)
        size = self.out.stat().st_size
        if self.json:
            print_json({"out": str(self.out), "format": self.format, "bytes": size})
        else:
            print(f"{self.out}: {self.format}, {size:,} bytes")

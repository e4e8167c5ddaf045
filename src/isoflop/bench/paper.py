"""Measured times of the paper (section 6, figure 5), relative to the dense model.

Inference is ResNet-18 and Sparse Wide at batch 64, 224×224, on a processor with AVX-512; training is
GPT-3 20B at sequence 256, batch 256, on a Cerebras CS-2.
"""

from typing import Literal

RELATIVE_TIMES: dict[Literal["inference", "training"], dict[str, dict[float, float]]] = {
    "inference": {
        "paper: no sparse support": {0.9: 19.5},
        "paper: DeepSparse": {0.9: 3.5},
    },
    "training": {
        "paper: no sparse support": {0.9: 10.6},
        "paper: CS-2": {0.5: 1.30, 0.75: 1.39, 0.9: 2.82},
    },
}
"""By kind of workload, by system, by sparsity."""

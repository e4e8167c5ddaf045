"""Measured times of the paper (section 6, figure 5), relative to the dense model.

Inference is ResNet-18 and Sparse Wide at batch 64, 224×224, on a processor with AVX-512; training is
GPT-3 20B at sequence 256, batch 256, on a Cerebras CS-2.
"""

PAPER_TIMES: dict[str, dict[str, dict[float, float]]] = {
    "inference": {
        "masked": {0.9: 19.5},
        "deepsparse": {0.9: 3.5},
    },
    "training": {
        "masked": {0.9: 10.6},
        "cs2": {0.5: 1.30, 0.75: 1.39, 0.9: 2.82},
    },
}
"""By kind of workload, by contestant, by sparsity."""

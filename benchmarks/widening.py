"""Time and memory of planning Sparse Wide, a fresh process and no weights for each model.

python benchmarks/widening.py [--sparsity 0.75] [MODEL …]
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from torch import nn

NETWORKS = """
resnet18_cifar resnet34_cifar resnet50_cifar mobilenet_v2_cifar mobilevit_s_cifar botnet50_cifar
resnet18 resnet34 resnet50 botnet50 retinanet_resnet18 deeplabv3plus_resnet18
gpt3_small gpt3_xl gpt3_6.7b gpt3_20b
"""
TORCHVISION = """
densenet121 mobilenet_v2 efficientnet_b0 convnext_tiny vit_b_16 swin_t regnet_y_400mf
shufflenet_v2_x1_0 mnasnet1_0 squeezenet1_0 googlenet
"""
MODELS = [
    *(f"isoflop:{name}" for name in NETWORKS.split()),
    "widening:llama_70b",
    *(f"torchvision:{name}" for name in TORCHVISION.split()),
]


def llama_70b() -> nn.Module:
    """Llama with the sizes of its 70B model: 80 layers, 8 heads of keys and values for 64."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def measure(spec: str, sparsity: float) -> dict[str, object]:
    import torch

    import isoflop
    from isoflop.model_specs import build_model, default_example_shape, example_inputs

    model = build_model(spec, meta=True)
    if spec.endswith("llama_70b"):
        inputs = torch.zeros(1, 2048, dtype=torch.long, device="meta")
    else:
        inputs = example_inputs(spec, default_example_shape(spec, model), meta=True)
    start = time.perf_counter()
    _, plan = isoflop.transform(
        model, isoflop.SparseWide(sparsity), example_inputs=inputs, scope="model"
    )
    return {
        "model": spec.partition(":")[2],
        "seconds": round(time.perf_counter() - start, 1),
        "modules": sum(1 for _ in model.modules()),
        "dense_macs": plan.dense_macs,
        "macs": plan.macs,
        "gap": plan.relative_gap,
        "wide_macs_over_dense": round(plan.unmasked_macs / plan.dense_macs, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.models[0], options.sparsity)))
        return
    print("| model | seconds | modules | dense MACs | MACs | gap | unmasked ÷ dense | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for spec in options.models:
        command = [sys.executable, __file__, spec, "--sparsity", str(options.sparsity), "--here"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {spec.partition(':')[2]} | {done.stderr.strip().splitlines()[-1]} |")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {row['model']} | {row['seconds']} | {row['modules']} | {row['dense_macs']:,} | "
            f"{row['macs']:,} | {row['gap']:.1e} | {row['wide_macs_over_dense']} | "
            f"{row['peak_gib']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

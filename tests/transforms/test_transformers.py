"""The layer transforms on tiny models of Hugging Face, which take integer token ids."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.zoo import gpt2, llama
from torch import nn

import isoflop
from isoflop.flops.trace import profile
from isoflop.transforms import TRANSFORMS

NAMES = ("parallel", "factorized", "doped", "low_rank")
SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 8,
}
IDS = torch.arange(12).reshape(2, 6) % 16


def gpt_neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(**SMALL, bos_token_id=0, eos_token_id=0)
    return transformers.GPTNeoXForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))


def t5() -> nn.Module:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=16
    )
    return transformers.T5ForConditionalGeneration(config)


CAUSAL = {"input_ids": IDS, "use_cache": False}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "gpt2": (gpt2, CAUSAL),
    "gpt_neox": (gpt_neox, CAUSAL),
    "llama": (llama, CAUSAL),
    "bert": (bert, {"input_ids": IDS, "attention_mask": IDS != 5}),
    "t5": (t5, CAUSAL | {"decoder_input_ids": IDS}),
}
"""Name to `(constructor, keyword arguments)`."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(("scope", "sparsity"), [("model", 0.6), ("layers", 0.75)])
def test_all_projections_are_replaced_at_equal_flops(name, model_name, scope, sparsity):
    make, inputs = MODELS[model_name]
    dense = make()
    config = TRANSFORMS.get(name)(sparsity)
    model, plan = isoflop.transform(dense, config, example_inputs=inputs, scope=scope)
    assert plan.dense_macs == profile(dense, inputs).macs
    assert plan.unmasked_macs == profile(model, inputs).macs
    layers = {path for path, m in dense.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    ends = set().union(*isoflop.network_ends(dense, inputs))
    assert {layer.source for layer in plan.sparse_layers} == layers - ends - {"lm_head"}
    if scope == "model":
        # One weight costs as much as there are tokens.
        assert abs(plan.macs - plan.dense_macs) <= IDS.numel()
    else:
        assert abs(plan.layer_gap) < 0.1
    model(**inputs).logits.square().mean().backward()
    gradients = [model.get_parameter(layer.parameter).grad for layer in plan.sparse_layers]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_widening_keeps_the_number_of_heads(name):
    make, inputs = MODELS[name]
    dense = make()
    wide, _ = isoflop.transform(dense, isoflop.SparseWide(0.75), example_inputs=inputs)
    modules = dict(wide.named_modules())
    sizes = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
    grown = set()
    for path, module in dense.named_modules():
        for attribute in vars(module).keys() & {
            *sizes,
            "num_heads",
            "n_heads",
            "num_attention_heads",
        }:
            before, after = getattr(module, attribute), getattr(modules[path], attribute)
            assert after == (2 * before if attribute in sizes else before)
            grown |= {attribute} & {*sizes}
    assert grown


def test_the_configuration_follows_where_the_forward_pass_reads_it():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.GPT2Config(n_embd=32, n_head=4)
            self.first, self.query = nn.Linear(8, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            shape = (-1, self.config.n_head, self.config.n_embd // self.config.n_head)
            return self.head(self.query(self.first(x)).view(shape).flatten(1))

    dense = Reader()
    wide: Any
    wide, _ = isoflop.transform(dense, isoflop.SparseWide(0.75), example_inputs=(2, 8))
    assert (wide.config.n_embd, wide.config.n_head) == (64, 4)
    assert dense.config.n_embd == 32


@pytest.mark.parametrize("name", NAMES)
def test_tied_embeddings_stay_tied(name):
    make, inputs = MODELS["gpt2"]
    model: Any
    model, plan = isoflop.transform(make(), TRANSFORMS.get(name)(0.5), example_inputs=inputs)
    assert model.lm_head.weight is model.transformer.wte.weight
    kinds = {layer.parameter: layer.kind for layer in plan.layers}
    assert kinds["transformer.wte.weight"] == "dense"

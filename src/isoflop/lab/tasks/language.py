"""Predicting the next token of a text."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import DataError
from isoflop.lab.data.text import LanguageData, TextTokenizer
from isoflop.lab.data.text.held_out import token_losses
from isoflop.lab.data.text.registry import TEXTS
from isoflop.lab.metrics import PERPLEXITY
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks.base import TASKS
from isoflop.model_specs import build_model
from isoflop.surgery import configs


class Language:
    """Causal language models: cross-entropy of the next token, judged by perplexity."""

    metric = PERPLEXITY

    def build_model(self, recipe: Recipe) -> nn.Module:
        """Return the recipe's own dense model, freshly initialised."""
        model = build_model(
            recipe.model,
            base_width=recipe.base_width,
            vocab_size=recipe.num_classes,
            context=_context(recipe),
        )
        for config in configs(model).values():
            config.use_cache = False  # keys and values of whole blocks are never used again
        return model

    def example_inputs(self, recipe: Recipe) -> Tensor:
        """Return one block of tokens."""
        return torch.zeros(1, _context(recipe), dtype=torch.long)

    def load(
        self, recipe: Recipe, folder: str | Path | None, workers: int | None = None
    ) -> LanguageData:
        """Load the text, or open it. Each process reads ahead in a thread, without `workers`."""
        del workers
        folder = None if folder is None else Path(folder)
        data = TEXTS.get(recipe.dataset).load(folder, _context(recipe), recipe.test_tokens)
        _check(data.tokenizer, recipe)
        return data

    def tokenizer(self, recipe: Recipe, folder: str | Path | None) -> TextTokenizer:
        """Return the tokenizer of the text alone.

        Raises:
            DataError: It is missing, or does not fit the model.
        """
        tokenizer = TEXTS.get(recipe.dataset).tokenizer(None if folder is None else Path(folder))
        _check(tokenizer, recipe)
        return tokenizer

    def loss(self, recipe: Recipe, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `[batch, context, vocabulary]`, in nats."""
        del recipe
        return token_losses(outputs, targets).mean()


def _check(tokenizer: TextTokenizer, recipe: Recipe) -> None:
    if tokenizer.vocab_size != recipe.num_classes:
        raise DataError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model of the recipe "
            f"{recipe.num_classes}. Use the tokenizer of the model, or change num_classes of the "
            "recipe."
        )


def _context(recipe: Recipe) -> int:
    (context,) = recipe.input_shape
    return context


TASKS.add("language", Language())

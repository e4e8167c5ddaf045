"""Recipes of language models."""

from isoflop.lab.recipes.base import RECIPES, Recipe


@RECIPES.register("pile")
def pile() -> Recipe:
    """GPT-3 Small on 2.5 billion tokens of the Pile as in the paper (section 5.2, appendix D)."""
    return Recipe(
        name="pile",
        task="language",
        dataset="pile",
        model="isoflop:gpt3_small",
        num_classes=50257,
        input_shape=(2048,),
        epochs=20,
        tokens=2_500_000_000,
        batch_size=256,
        optimizer="adamw",
        lr=6e-4,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip_norm=1.0,
        schedule="cosine",
        schedule_by="step",
        warmup_tokens=375_000_000,
        final_lr=6e-5,
        scope="layers",
        # Of the 390 million that the held-out part of the Pile has.
        test_tokens=2**22,
    )


@RECIPES.register("pysource")
def pysource() -> Recipe:
    """Small GPT on the bytes of Python's standard library: minutes on a laptop, no download."""
    return Recipe(
        name="pysource",
        task="language",
        dataset="pysource",
        model="isoflop:gpt_mini",
        num_classes=257,
        input_shape=(256,),
        epochs=8,
        tokens=2000 * 16 * 256,
        batch_size=16,
        optimizer="adamw",
        lr=2e-3,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip_norm=1.0,
        schedule="cosine",
        schedule_by="step",
        warmup_tokens=300 * 16 * 256,
        final_lr=2e-4,
        scope="layers",
        test_tokens=2**17,
    )

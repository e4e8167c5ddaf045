"""Recipes of the paper's further networks for CIFAR, and of ImageNet (appendix C.1)."""

import dataclasses

from isoflop.lab.recipes.base import RECIPES, Recipe, cifar10, cifar100


def _cosine(recipe: Recipe, name: str, model: str) -> Recipe:
    """Return a CIFAR recipe with another network and cosine annealing, all else equal (C.1)."""
    return dataclasses.replace(recipe, name=name, model=model, schedule="cosine")


@RECIPES.register("cifar10-mobilenet-v2")
def cifar10_mobilenet_v2() -> Recipe:
    """MobileNetV2 on CIFAR-10: as ResNet-18, with cosine annealing (appendix C.1)."""
    return _cosine(cifar10(), "cifar10-mobilenet-v2", "isoflop:mobilenet_v2_cifar")


@RECIPES.register("cifar10-mobilevit-s")
def cifar10_mobilevit_s() -> Recipe:
    """MobileViT-S on CIFAR-10: as ResNet-18, with cosine annealing (appendix C.1)."""
    return _cosine(cifar10(), "cifar10-mobilevit-s", "isoflop:mobilevit_s_cifar")


@RECIPES.register("cifar10-botnet50")
def cifar10_botnet50() -> Recipe:
    """BotNet-50 on CIFAR-10: as ResNet-18, with cosine annealing (appendix C.1)."""
    return _cosine(cifar10(), "cifar10-botnet50", "isoflop:botnet50_cifar")


@RECIPES.register("cifar100-mobilenet-v2")
def cifar100_mobilenet_v2() -> Recipe:
    """MobileNetV2 on CIFAR-100 as in the paper: cosine annealing (appendix C.1)."""
    return _cosine(cifar100(), "cifar100-mobilenet-v2", "isoflop:mobilenet_v2_cifar")


@RECIPES.register("cifar100-mobilevit-s")
def cifar100_mobilevit_s() -> Recipe:
    """MobileViT-S on CIFAR-100 as in the paper: cosine annealing (appendix C.1)."""
    return _cosine(cifar100(), "cifar100-mobilevit-s", "isoflop:mobilevit_s_cifar")


@RECIPES.register("cifar100-botnet50")
def cifar100_botnet50() -> Recipe:
    """BotNet-50 on CIFAR-100 as in the paper: cosine annealing (appendix C.1)."""
    return _cosine(cifar100(), "cifar100-botnet50", "isoflop:botnet50_cifar")


@RECIPES.register("imagenet")
def imagenet() -> Recipe:
    """ResNet-18 on ImageNet as in the paper (appendix C.1); ResNet-34 and BotNet-50 by `--model`."""
    return Recipe(
        name="imagenet",
        dataset="imagenet",
        model="isoflop:resnet18",
        num_classes=1000,
        input_shape=(3, 224, 224),
        scale_jitter=(256, 480),
        test_scale=256,
        epochs=90,
        batch_size=256,
        # The paper says nothing of the last, smaller batch.
        drop_last=True,
        lr=0.256,
        momentum=0.875,
        # The paper names Nesterov's form for CIFAR only.
        nesterov=False,
        weight_decay=2.0**-15,  # 3.0517578125e-5
        schedule="cosine",
        label_smoothing=0.1,
        # The paper says mixed precision only; this needs no scaling of the loss, and runs anywhere.
        mixed_precision="bf16",
    )

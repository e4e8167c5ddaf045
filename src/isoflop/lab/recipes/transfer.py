"""Recipes of detection and segmentation, to which trained backbones are transferred (C.3.4)."""

from isoflop.lab.recipes.base import RECIPES, Recipe


@RECIPES.register("coco")
def coco() -> Recipe:
    """RetinaNet on COCO 2017, with a ResNet-18 from ImageNet by `--backbone` (appendix C.3.4)."""
    return Recipe(
        name="coco",
        task="detection",
        dataset="coco",
        model="isoflop:retinanet_resnet18",
        num_classes=80,
        # Shorter side 800 (C.3.4); the longer one at most 1333, as is usual with that.
        input_shape=(3, 800, 1333),
        epochs=12,
        batch_size=16,
        # The paper says nothing of the last, smaller batch.
        drop_last=True,
        lr=0.01,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        milestones=(8, 11),
        gamma=0.1,
        warmup_steps=500,
        warmup_lr=2e-5,
    )


@RECIPES.register("cityscapes")
def cityscapes() -> Recipe:
    """DeepLabV3+ on Cityscapes, with a ResNet-18 from ImageNet by `--backbone` (appendix C.3.4)."""
    return Recipe(
        name="cityscapes",
        task="segmentation",
        dataset="cityscapes",
        model="isoflop:deeplabv3plus_resnet18",
        num_classes=19,
        input_shape=(3, 512, 1024),
        scale_range=(0.5, 2.0),
        steps=80_000,
        # Evaluated, and saved, every 8000 steps; the paper does not say how often.
        epochs=10,
        batch_size=16,
        lr=0.01,
        sparse_lr=0.03,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        schedule="poly",
        schedule_by="step",
        # The exponent that poly schedules mostly have; the paper names none.
        power=0.9,
        final_lr=1e-4,
    )


@RECIPES.register("fashion-scenes-detection")
def fashion_scenes_detection() -> Recipe:
    """Narrow RetinaNet on drawn scenes of Fashion-MNIST: minutes on a laptop."""
    return Recipe(
        name="fashion-scenes-detection",
        task="detection",
        dataset="fashion-scenes",
        model="isoflop:retinanet_resnet18_cifar",
        num_classes=10,
        input_shape=(1, 64, 64),
        base_width=8,
        epochs=8,
        batch_size=16,
        drop_last=True,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-2,
        schedule="cosine",
        schedule_by="step",
        warmup_steps=50,
        clip_norm=10.0,
    )


@RECIPES.register("fashion-scenes-segmentation")
def fashion_scenes_segmentation() -> Recipe:
    """Narrow DeepLabV3+ on drawn scenes of Fashion-MNIST: minutes on a laptop."""
    return Recipe(
        name="fashion-scenes-segmentation",
        task="segmentation",
        dataset="fashion-scenes",
        model="isoflop:deeplabv3plus_resnet18_cifar",
        num_classes=11,
        input_shape=(1, 64, 64),
        scale_range=(0.75, 1.5),
        base_width=8,
        steps=1000,
        epochs=5,
        batch_size=16,
        lr=0.05,
        nesterov=False,
        schedule="poly",
        schedule_by="step",
        final_lr=1e-4,
    )

"""Training: recipes, data, the loop, and the run directory that it writes."""

# These register recipes.
from isoflop.training import image_recipes, language_recipes, transfer_recipes  # noqa: F401
from isoflop.training.configs import build_method, build_transform
from isoflop.training.data import DATASETS, ImageData, load_dataset
from isoflop.training.images import ImageFolderData
from isoflop.training.loop import train
from isoflop.training.recipes import RECIPES, Recipe, get_recipe
from isoflop.training.restore import Restored, restore
from isoflop.training.rundir import RunDirectory

__all__ = [
    "DATASETS",
    "RECIPES",
    "ImageData",
    "ImageFolderData",
    "Recipe",
    "Restored",
    "RunDirectory",
    "build_method",
    "build_transform",
    "get_recipe",
    "load_dataset",
    "restore",
    "train",
]

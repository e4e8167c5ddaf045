"""Recipes: which model is trained on which data, and how."""

# The modules imported only for their effect register their recipes.
from isoflop.lab.recipes import image, language, transfer  # noqa: F401
from isoflop.lab.recipes.base import RECIPES, Recipe, get_recipe

__all__ = ["RECIPES", "Recipe", "get_recipe"]

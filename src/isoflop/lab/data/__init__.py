"""Data sets: found, read and brought to the device as fast as training needs."""

from isoflop.lab.data.datasets import DATASETS, ImageData, load_dataset
from isoflop.lab.data.images import ImageFolderData

__all__ = ["DATASETS", "ImageData", "ImageFolderData", "load_dataset"]

"""Images in files: found, decoded, augmented and brought to the device as fast as training needs."""

from isoflop.training.images.files import ImageFiles
from isoflop.training.images.folder import ImageFolderData, open_folder

__all__ = ["ImageFiles", "ImageFolderData", "open_folder"]

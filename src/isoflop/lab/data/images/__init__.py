"""Images in files: found, decoded, augmented and brought to the device as fast as training needs."""

from isoflop.lab.data.images.files import ImageFiles
from isoflop.lab.data.images.folder import ImageFolderData, open_folder

__all__ = ["ImageFiles", "ImageFolderData", "open_folder"]

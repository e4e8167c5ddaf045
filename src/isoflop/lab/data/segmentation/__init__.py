"""Data of semantic segmentation: images whose every pixel has a class."""

from isoflop.lab.data.segmentation.data import SegmentationData, load_segmentation

__all__ = ["SegmentationData", "load_segmentation"]

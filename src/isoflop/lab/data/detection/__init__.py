"""Data of object detection: annotated images, what a detector finds in them, and how good that is."""

from isoflop.lab.data.detection.data import DetectionData, load_detection

__all__ = ["DetectionData", "load_detection"]

"""From training to use: files of trained models, and programs for other engines."""

from isoflop.io.export import export
from isoflop.io.file import load, save
from isoflop.io.source import ModelSource

__all__ = ["ModelSource", "export", "load", "save"]

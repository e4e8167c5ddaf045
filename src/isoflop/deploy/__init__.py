"""From training to use: files of trained models, and programs for other engines."""

from isoflop.deploy.export import export
from isoflop.deploy.file import load, save
from isoflop.deploy.source import ModelSource, load_run

__all__ = ["ModelSource", "export", "load", "load_run", "save"]

"""The methods; importing this package registers all of them."""

from isoflop.methods.rigl import RigL
from isoflop.methods.set import Set
from isoflop.methods.static import Dense, Static

__all__ = ["Dense", "RigL", "Set", "Static"]

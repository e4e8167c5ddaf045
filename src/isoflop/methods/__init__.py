"""The methods; importing this package registers all of them."""

from isoflop.methods.force import Force
from isoflop.methods.gmp import Gmp
from isoflop.methods.granet import GraNet
from isoflop.methods.grasp import Grasp
from isoflop.methods.rigl import RigL
from isoflop.methods.set import Set, SetOriginal
from isoflop.methods.snfs import Snfs
from isoflop.methods.snip import IterativeSnip, Snip
from isoflop.methods.sr_ste import SrSte
from isoflop.methods.static import Dense, Static
from isoflop.methods.synflow import SynFlow

__all__ = [
    "Dense",
    "Force",
    "Gmp",
    "GraNet",
    "Grasp",
    "IterativeSnip",
    "RigL",
    "Set",
    "SetOriginal",
    "Snfs",
    "Snip",
    "SrSte",
    "Static",
    "SynFlow",
]

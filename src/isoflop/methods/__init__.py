"""The methods; importing this package registers all of them."""

from isoflop.methods.base import METHODS, Method
from isoflop.methods.dense import Dense
from isoflop.methods.drop_grow import DropGrow
from isoflop.methods.force import FORCE
from isoflop.methods.gmp import GMP
from isoflop.methods.granet import GraNet
from isoflop.methods.grasp import GraSP
from isoflop.methods.iterative_snip import IterativeSNIP
from isoflop.methods.rigl import RigL
from isoflop.methods.schedules import SCHEDULES
from isoflop.methods.set import SET
from isoflop.methods.set_original import SETOriginal
from isoflop.methods.snfs import SNFS
from isoflop.methods.snip import SNIP
from isoflop.methods.sr_ste import SRSTE
from isoflop.methods.static import Static
from isoflop.methods.synflow import SynFlow

__all__ = [
    "FORCE",
    "GMP",
    "METHODS",
    "SCHEDULES",
    "SET",
    "SNFS",
    "SNIP",
    "SRSTE",
    "Dense",
    "DropGrow",
    "GraNet",
    "GraSP",
    "IterativeSNIP",
    "Method",
    "RigL",
    "SETOriginal",
    "Static",
    "SynFlow",
]

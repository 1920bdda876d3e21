"""Which parts of a network can be cut out: units with all their slices, proved on the network's code, and the smaller
network without some of them."""

from nett.core.structure.deriving import structure_of
from nett.core.structure.families import loads_from_config
from nett.core.structure.proving import outputs_of
from nett.core.structure.removing import removed
from nett.core.structure.slices import Slices, slices_of
from nett.core.structure.units import Structure

__all__ = ["Slices", "Structure", "loads_from_config", "outputs_of", "removed", "slices_of", "structure_of"]

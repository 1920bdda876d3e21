"""Permutation symmetries of networks: derived from their code or config, proved on random input, applied to arrays."""

from nett.core.symmetry.deriving import example_input, network, proved_symmetry
from nett.core.symmetry.groups import Group, Origin, Place, Refusal, Symmetry
from nett.core.symmetry.proof import Proof, prove, prove_module, scrambled
from nett.core.symmetry.shrunken import prove_config, small_model
from nett.core.symmetry.trace import of_module
from nett.core.symmetry.transformer import of_config

__all__ = [
    "Group", "Origin", "Place", "Proof", "Refusal", "Symmetry", "example_input", "network", "of_config", "of_module", "prove",
    "prove_config", "prove_module", "proved_symmetry", "scrambled", "small_model",
]  # fmt: skip

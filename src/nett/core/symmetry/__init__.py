"""Permutation symmetries of networks: derived from their code or config, proved on random input, applied to arrays."""

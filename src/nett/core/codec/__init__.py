"""Lossless coding of tensor bytes: byte planes of values or of differences to a base, each with the entropy coder
that suits it. Coders are libraries' (zstandard, openzl); what is ours is which bytes lie together."""

from nett.core.codec.blocks import BLOCK, Coded, decode_block, encode_block
from nett.core.codec.modes import Mode, choose_mode, estimated_bits

__all__ = ["BLOCK", "Coded", "Mode", "choose_mode", "decode_block", "encode_block", "estimated_bits"]

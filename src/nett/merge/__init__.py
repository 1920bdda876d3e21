"""Many checkpoints become one.

Give a base model and fine-tunes of it (or a mergekit recipe); get one checkpoint that loads like any of them.
Start with `nett merge ties` or, to keep every task's accuracy at the price of a second file, `nett merge tall_masks`.
"""

from nett.core.room import furnish

__getattr__ = furnish(__name__)

"""The one shape of this room's policies, and its laws.

A policy is a pure kernel on the torch tensors of one layer; its operands say what it sees, for each of ``h`` heads of keys
(of all rows of a batch that are equally long, one after the other) over the ``n`` slots that are held:

``keys``, ``values`` ``[h, n, d]`` (keys as attention uses them, positions included); ``sizes`` ``[h, n]``: how many
tokens a slot stands for; ``mass`` ``[h, n]``: attention that it got from all queries so far, the mean over the query
heads of its group; ``reach`` ``[h, n]``: how many queries could see it; ``recent`` ``[h, w, n]``: attention of the last
``w`` queries, by the module's literal ``RECENT = w``; ``queries`` ``[h, g, w, d]``: those queries themselves, ``g`` to a
key head. ``expected`` ``[h, g, d]``, ``covariance`` ``[h, g, d, d]``: of queries as they will be at the next positions, by
those so far (the method's parameters ``ahead``: how many positions, ``sinks``: first queries that do not count). ``keep``:
how many slots may stay. ``heads``: how many heads a row has, ``there`` bool ``[h, n]``: which slots a head has, for kernels
that let heads keep unequally many.

Or it sees, in place of keys and values, what they are made of: ``hidden`` ``[r, n, d]``: what the projections of ``r``
rows were given; ``key_basis``, ``value_basis`` ``[d, k]``: orthonormal, of all directions that keys and values depend on,
``basis``: of both together (each None where it would save nothing); ``before`` ``[r, n, d]``: the same tokens' hidden
states of the layer before, as they are read from its codes (None where a layer stands for itself). Such a kernel returns
a :class:`Hidden`.

What other kernels return is a :class:`Kept`, a :class:`Merged`, or, without ``keep``, a :class:`Coded`: then the layer holds
codes in place of numbers, chunk by chunk of ``BLOCK`` tokens (a literal of the module), never coded again.

Or it sees nothing but a model's ``config``, and returns a cache of transformers' own, which is then counted by what it holds.

Laws: the same call gives the same bits; inputs are not written to; all heads are treated alike (their order does not
matter); at a budget of all tokens the model's answer is that of the full cache, bit for bit; no more slots than
``keep``, the mean over the heads of a row; no more bytes than the ledger says.

What makes something (kind ``make``) has another shape: a prompt, a generator of steps and a reward, as
:mod:`nett.cache.search_tree` states them; its laws: the same seed gives the same search, the width is respected, the ledger is
what the tree holds. Another maker is given a store of chunks, the texts of a prompt and its question, and makes the
prompt's cache; its laws: the same store and prompt give the same bits, all tokens computed are the model itself, the ledger is
what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor
else:
    Tensor = Any

STATISTICS = ("mass", "reach", "recent", "queries")  # operands that attention has to be watched for


@final
@dataclass(frozen=True)
class Kept:
    """index int64 ``[h, m]``: the slots that stay, of each head its own, ascending; where a head keeps fewer than another,
    -1 before them. What a head does not keep is not held: no mask stands for it."""

    index: Tensor


@final
@dataclass(frozen=True)
class Merged:
    """New slots. keys, values ``[h, m, d]``; sizes ``[h, m]``: tokens that each stands for; into int64 ``[h, n]``: the new
    slot that an old one went to, -1 where it is gone."""

    keys: Tensor
    values: Tensor
    sizes: Tensor
    into: Tensor


@final
@dataclass(frozen=True)
class Grid:
    """Numbers as codes: ``codes`` uint8, packed by ``bits``; ``scale`` and ``low`` of each group. See
    :mod:`nett.cache.packing`."""

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int
    shape: tuple[int, ...]
    axis: int  # along which a group runs: -1 channels of a token, -2 tokens of a channel


@final
@dataclass(frozen=True)
class Coded:
    """A chunk's keys and values as codes."""

    keys: Grid
    values: Grid


@final
@dataclass(frozen=True)
class Hidden:
    """A chunk's hidden states as codes. parts: one grid of ``[r, n, d]``, or of ``[r, n, k]`` in ``basis``; or two, in
    ``key_basis`` and ``value_basis``. delta: to be added to ``before``."""

    parts: tuple[Grid, ...]
    delta: bool = False

"""What serving a model asks of its processors: operations and bytes of every layer, by the tokens of a stage.

All counts are for one device of a node that shares the layers evenly: heads and the widths of matrices are cut over its
devices (tensor parallel); nodes hold copies of all but the experts. Counted are the matrix products, as 2 operations for a
multiplication and addition, and their operands once each: weights, activations, keys and values. Norms, softmax, rotations and
the token embedding are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.experts.duplex_dimensions import Dimensions
from nett.experts.duplex_settings import Bytes

Numbers = Any  # a float or an array of float64


@final
@dataclass(frozen=True)
class Product:
    """A matrix product on one device, in ``count`` layers: ``[tokens, taken] x [taken, given]``."""

    name: str
    taken: float
    given: float
    count: int

    def flops(self, tokens: Numbers) -> Numbers:
        return 2.0 * self.count * self.taken * self.given * tokens

    def bytes(self, tokens: Numbers, size: Bytes) -> Numbers:
        """Nothing for no tokens."""
        moved = self.taken * self.given * size.weights + tokens * (self.taken + self.given) * size.activations
        return np.where(np.asarray(tokens) > 0, self.count * moved, 0.0)


def products(model: Dimensions, devices: int) -> Iterator[Product]:
    """The layers that all tokens pass; ``head`` is for tokens that a next one is asked of."""
    hidden, heads = model.hidden, model.heads / devices
    yield from _attention_products(model, heads, devices)
    up = model.matrices - 1
    if model.moe_layers:
        yield Product("router", hidden, model.experts, model.moe_layers)
    for name, width, count in (
        ("shared", model.shared_intermediate, model.moe_layers),
        ("dense", model.dense_intermediate, model.layers - model.moe_layers),
    ):
        if width and count:
            yield Product(name, hidden, up * width / devices, count)
            yield Product(name, width / devices, hidden, count)
    if model.vocabulary:
        yield Product("head", hidden, model.vocabulary / devices, 1)


def _attention_products(model: Dimensions, heads: float, devices: int) -> Iterator[Product]:
    hidden, size, layers, latent = model.hidden, model.head_dim, model.layers, model.latent
    if latent is None:
        yield Product("qkv", hidden, (heads + 2 * kv_heads(model, devices)) * size, layers)
        yield Product("projection", heads * size, hidden, layers)
        return
    query = heads * (latent.nope + latent.rope)
    if latent.query_rank:
        yield Product("qkv", hidden, latent.query_rank, layers)
    yield Product("qkv", latent.query_rank or hidden, query, layers)
    yield Product("qkv", hidden, latent.rank + latent.rope, layers)
    yield Product("qkv", latent.rank, heads * (latent.nope + latent.value), layers)
    yield Product("projection", heads * latent.value, hidden, layers)


def kv_heads(model: Dimensions, devices: int) -> float:
    """Of one device; a head that several devices ask for is held by each."""
    return max(model.kv_heads / devices, 1.0)


@final
@dataclass(frozen=True)
class Attention:
    """Attention of all layers on one device: operations and bytes a unit.

    Decoding, of requests whose contexts are so many tokens in all: ``context_*`` a token of context, ``request_bytes`` a
    request. Prompts: ``pair_flops`` a pair of a token and one that it looks at, ``key_bytes`` a token that is looked at,
    ``token_bytes`` a token that looks.
    """

    context_flops: float
    context_bytes: float
    request_bytes: float
    pair_flops: float
    key_bytes: float
    token_bytes: float


def attention(model: Dimensions, devices: int, size: Bytes) -> Attention:
    """Grouped queries: heads of a group read the same keys and values once, so that decoding has heads / kv_heads
    operations a byte of a 2-byte cache. Latent attention decodes on the latents, and expands them for prompts."""
    heads, layers, latent = model.heads / devices, model.layers, model.latent
    if latent is None:
        held = kv_heads(model, devices) * model.head_dim
        wide = heads * model.head_dim
        flops, cached, own = 4 * wide, 2 * held * size.cache, 2 * wide * size.activations
        return Attention(layers * flops, layers * cached, layers * own, layers * flops, layers * cached, layers * own)
    asked, given = latent.nope + latent.rope, latent.value
    return Attention(
        layers * 2 * heads * (2 * latent.rank + latent.rope),
        layers * (latent.rank + latent.rope) * size.cache,
        layers * heads * (2 * latent.rank + latent.rope) * size.activations,
        layers * 2 * heads * (asked + given),
        layers * heads * (asked + given) * size.activations,
        layers * heads * (asked + given) * size.activations,
    )


@final
@dataclass(frozen=True)
class Expert:
    """One expert on one device that holds ``share`` of its width: operations a token, bytes at all and a token."""

    flops: float
    weight_bytes: float
    token_bytes: float


def expert(model: Dimensions, share: float, size: Bytes) -> Expert:
    """With ``n`` tokens: 2 n operations a weight, so n operations a byte of 2-byte weights, less what activations take."""
    weights = model.expert_weights * share
    through = 2 * model.hidden + model.matrices * model.intermediate * share
    return Expert(2.0 * weights, weights * size.weights, through * size.activations)


def weight_bytes(model: Dimensions, nodes: int, size: Bytes) -> float:
    """Of the whole system: experts once, all else on every node; the token embedding with its head."""
    each = sum(p.taken * p.given * p.count for p in products(model, 1)) + model.vocabulary * model.hidden
    return size.weights * (nodes * each + model.moe_layers * model.experts * model.expert_weights)


def cache_bytes(model: Dimensions, devices: int, size: Bytes) -> float:
    """Of a token's keys and values on all devices of its node."""
    copies = devices if model.latent else kv_heads(model, devices) * devices / model.kv_heads
    return model.cache_numbers * size.cache * copies

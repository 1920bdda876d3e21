"""What the headers alone tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nett.core.layers import layer_of
from nett.core.registry import method
from nett.scan.protocol import Asset, Findings, Probe, probe


@method(title="Headers", kind="measure", guarantee="exact", grain="stream", command=True)
@probe
def header(assets: Sequence[Asset]) -> Probe:
    """Count tensors, layers and bytes by type, from the headers alone.

    When to use: always; it costs nothing and tells what the other probes look at.
    When not: never left out, except with --only.
    Cost: reads the headers.
    Source: the formats' own descriptions.
    """
    yield []
    return Findings(figures={asset.path: _figures(asset) for asset in assets})


def _figures(asset: Asset) -> dict[str, Any]:
    tensors = asset.checkpoint.tensors.values()
    by_type: Counter[str] = Counter()
    for info in tensors:
        by_type[info.stored] += info.nbytes
    layers = {found.layer for t in tensors if (found := layer_of(t.name))}
    return {
        "bytes_by_type": dict(sorted(by_type.items())),
        "layers": len(layers),
        "largest": max(tensors, key=lambda t: t.nbytes).name if tensors else None,
    }

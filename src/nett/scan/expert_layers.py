"""What the probes of experts share: the mixtures of an asset, an expert's matrices as sources, its edge, the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.edge import Edge, Guarantee
from nett.core.errors import NettError
from nett.scan.protocol import Asset, Finding

if TYPE_CHECKING:
    from nett.experts.view import FileLayer


def mixtures_of(asset: Asset, figures: dict[str, Any]) -> list[FileLayer]:
    """The mixtures of an asset; none where it has none, or where they are not understood, which ``figures`` says then."""
    from nett.experts.view import experts_view

    if not any("experts" in name or len(info.shape) == 3 for name, info in asset.checkpoint.tensors.items()):
        return []
    try:
        return experts_view(asset.checkpoint)
    except NettError as error:
        figures[asset.path] = {"skipped": str(error)}
        return []


@final
@dataclass(frozen=True)
class Matrix:
    """One matrix of an expert inside the tensor ``source``: ``rows`` by ``columns`` from element ``start`` on; ``across``
    where its columns, and not its rows, are the neurons."""

    source: Any
    start: int
    rows: int
    columns: int
    across: bool

    def block(self, first: int, last: int, source: Any) -> Array:
        """Some rows, as float32; ``source`` counts what is read."""
        found = source.values(self.start + first * self.columns, self.start + last * self.columns)
        return np.asarray(found, np.float32).reshape(-1, self.columns)


def matrices(asset: Asset, layer: FileLayer, expert: int) -> list[Matrix]:
    """gate, up, down of one expert."""
    roles, width, hidden = layer.place.roles, layer.width, layer.hidden
    if layer.place.fused:
        both, down = asset.source(roles["gate_up"][0]), asset.source(roles["down"][0])
        start = expert * 2 * width * hidden
        return [
            Matrix(both, start, width, hidden, False),
            Matrix(both, start + width * hidden, width, hidden, False),
            Matrix(down, expert * hidden * width, hidden, width, True),
        ]
    named = [asset.source(roles[role][expert]) for role in ("gate", "up", "down")]
    return [Matrix(s, 0, *((hidden, width) if at == 2 else (width, hidden)), at == 2) for at, s in enumerate(named)]


def expert_name(layer: FileLayer, expert: int) -> str:
    """What an edge calls one: as the file does where experts have tensors of their own."""
    return f"{layer.name}.experts.{expert}"


def finding(
    kind: str,
    asset: Asset,
    layer: FileLayer,
    expert: int,
    others: Sequence[int],
    *,
    method: str | None,
    error: float | None,
    guarantee: Guarantee,
    command: str | None,
) -> Finding:
    """One expert that need not be kept, and the same for each of its tensors; where all experts are one tensor, for its share
    of that."""
    label = asset.label
    freed = layer.nbytes // layer.count
    sources = tuple(label(expert_name(layer, e)) for e in others)
    whole = Edge(kind, label(expert_name(layer, expert)), sources, method, freed, None, error, guarantee, command)
    parts = []
    for names in layer.place.roles.values():
        name = names[0 if layer.place.fused else expert]
        nbytes = asset.checkpoint.tensors[name].nbytes // (layer.count if layer.place.fused else 1)
        beside = tuple(label(names[0 if layer.place.fused else e]) for e in others)
        parts.append(Edge(kind, label(name), beside, method, nbytes, None, error, guarantee, command))
    return Finding(whole, tuple(parts))


def command(
    asset: Asset, method: str, layers: Sequence[FileLayer], gone: Mapping[int, int], more: str = ""
) -> str | None:
    """The command that leaves so many experts fewer as ``gone`` says for each layer; None where it would leave too few."""
    if not gone or asset.checkpoint.config() is None:
        return None
    counts = {i: layer.count - gone.get(i, 0) for i, layer in enumerate(layers)}
    if any(counts[i] < layer.least for i, layer in enumerate(layers)):
        return None
    keep = sum(counts.values()) / sum(layer.count for layer in layers)
    even = len({counts[i] / layer.count for i, layer in enumerate(layers)}) == 1
    spread = "" if even else " --spread global"
    return f"nett experts {method} {shlex.quote(asset.path)} --keep {keep:.6g}{spread}{more} --out OUT"


def statistics_of(asset: Asset, text: str, samples: int, length: int, wanted: Sequence[str]) -> tuple[list[Any], int]:
    """The statistics of each mixture on some windows of a text, and tokens that were looked at; Refused as the experts room
    refuses."""
    from pathlib import Path

    import torch

    from nett.core.texts import tokenizer_of
    from nett.core.windows import read_windows
    from nett.experts.gathering import gather
    from nett.experts.opening import opened

    with opened(asset.path) as model:
        skeleton = model.skeleton
        most = int(getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", 0) or length)
        windows = read_windows(
            Path(text),
            tokenizer_of(skeleton.checkpoint),
            samples=samples,
            length=min(length, most),
            vocabulary=skeleton.vocabulary,
        )
        return gather(model, torch.from_numpy(windows.ids), wanted), windows.tokens

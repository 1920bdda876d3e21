"""Blocks of a language model that hardly change what goes through them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Annotated, Any

from nett.core.edge import Edge
from nett.core.registry import Between, method
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe


@method(title="Block influence", kind="measure", guarantee="measured", grain="block", extra="models", command=True)
@probe
def block_influence(
    assets: Sequence[Asset],
    *,
    text: str = "",
    most: Annotated[float, Between(0, 2)] = 0.1,
    samples: Annotated[int, Between(1, 10_000)] = 4,
    length: Annotated[int, Between(8, 100_000)] = 128,
) -> Probe:
    """Run a language model on some text and find blocks whose output is nearly their input. Only with a text.

    Formula: influence = 1 - mean cosine(h_in, h_out);   error = ||h_out - h_in|| / ||h_out||, over all tokens
    Args:
        text: file that is read, .txt or .jsonl; without it nothing is run and nothing is found.
        most: largest influence of a block that is a finding.
        samples: windows of the text.
        length: tokens of a window.
    When to use: on deep decoders, before blocks are removed.
    When not: as the effect of removing several: their influences do not add up. Nor for what is no language model.
    Guarantee: measured on this text.
    Cost: a forward pass of the text, a block's weights in memory at a time.
    Source: Men et al., ShortGPT, arXiv:2403.03853, equation 1; the baseline of P07.
    """
    yield []
    found, figures = list[Finding](), dict[str, Any]()
    for asset in assets if text else ():
        if asset.checkpoint.config() is None:
            figures[asset.path] = {"skipped": "has no config.json, so it is no model that could be run"}
            continue
        rows = _run(asset, Path(text), samples, length)
        figures[asset.path] = {"blocks": [{"influence": i, "error": e} for i, e, _ in rows]}
        for influence, error, names in rows:
            if influence <= most:
                found.append(_finding(asset, names, error))
    return Findings(tuple(found), figures)


def _run(asset: Asset, text: Path, samples: int, length: int) -> list[tuple[float, float, list[str]]]:
    """(influence, error, tensors) of each block."""
    import torch
    from torch.nn.functional import cosine_similarity

    from nett.core import torch_model
    from nett.core.blocks import Walk, open_skeleton
    from nett.core.checkpoint import open_checkpoint
    from nett.core.windows import read_windows

    with open_checkpoint(asset.path, dense=True) as checkpoint:
        skeleton = open_skeleton(checkpoint)
        there = (checkpoint.path / "tokenizer_config.json").is_file()
        tokenizer = torch_model.tokenizer(checkpoint.path if there else checkpoint)
        windows = read_windows(text, tokenizer, samples=samples, length=length, vocabulary=skeleton.vocabulary)
        walk, found = Walk(skeleton, torch.from_numpy(windows.ids)), []
        for number in range(len(skeleton)):
            before = list(walk.hidden)
            with skeleton.block(number) as module:
                walk.run(module)
            cosine = torch.cat(
                [cosine_similarity(a, b, dim=-1).flatten() for a, b in zip(before, walk.hidden, strict=True)]
            )
            over = sum(float((b - a).double().square().sum()) for a, b in zip(before, walk.hidden, strict=True))
            under = sum(float(b.double().square().sum()) for b in walk.hidden)
            error = sqrt(over / under) if under else 0.0
            found.append((1 - float(cosine.double().mean()), error, list(skeleton.block_names(number).values())))
    return found


def _finding(asset: Asset, names: Sequence[str], error: float) -> Finding:
    tensors = [asset.checkpoint.tensors[n] for n in names if n in asset.checkpoint.tensors]
    stem = names[0]
    while not all(n.startswith(f"{stem}.") for n in names):
        stem = stem.rpartition(".")[0]
    words = f"nett weights foldgpt {shlex.quote(asset.path)} --by influence --calibration TEXT --out OUT"

    def edge(target: str, freed: int) -> Edge:
        return Edge("block_influence", target, (), "weights/foldgpt", freed, None, error, "measured", words)

    parts = tuple(edge(asset.label(t.name), t.nbytes) for t in tensors)
    return Finding(edge(asset.label(stem), sum(t.nbytes for t in tensors)), parts)

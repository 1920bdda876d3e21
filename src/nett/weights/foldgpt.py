"""FoldGPT (P07): blocks that trained gates close are removed, neighbours share weights, and the rest is cured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.registry import Between, method
from nett.weights.protocol import Shrunk, Tensor

QUICK = {"ratio": 0.4, "share": 2, "gate_steps": 4, "cure_steps": 4, "batch": 4}


@method(
    papers=["P07"],
    title="FoldGPT: blocks removed by gates, shared and cured",
    grain="model",
    extra="models",
    identity={"ratio": 0.0},
    resizes=True,
)
def foldgpt(
    model: Any,
    windows: Tensor,
    *,
    ratio: Annotated[float, Between(0, 1, open_high=True)] = 0.2,
    by: Literal["gates", "influence", "magnitude", "last", "random"] = "gates",
    share: Annotated[int, Between(1)] = 1,
    gate_steps: Annotated[int, Between(1)] = 100,
    gate_lr: Annotated[float, Between(0, open_low=True)] = 0.02,
    polarise: Annotated[float, Between(0)] = 20.0,
    pull: Annotated[float, Between(0)] = 1.2,
    cure: Literal["lora", "weights"] = "lora",
    cure_steps: Annotated[int, Between(0)] = 200,
    lr: Annotated[float, Between(0, open_low=True)] = 1e-3,
    rank: Annotated[int, Between(1)] = 8,
    tail: Annotated[float, Between(0)] = 1.0,
    tail_on: Literal["hidden", "logits"] = "hidden",
    batch: Annotated[int, Between(1)] = 8,
    seed: Annotated[int, Between(0)] = 0,
) -> Shrunk:
    """Remove the blocks whose gates close when all gates are trained together, let neighbours share weights, and train what is left on next tokens and the original's last layer.

    Formula: h_{l+1} = h_l + g_l (Block_l(h_l) - h_l), weights frozen; loss = next tokens + polarise * mean(pull |g| - |g - mean g|)
             + 10 (mean g - share kept)^2; the blocks with the smallest |g| go; cure: next tokens + tail * ||h_L - h'_L||^2 / ||h_L||^2
    Args:
        ratio: share of the blocks that is removed, to the nearest whole block.
        by: what ranks the blocks: trained gates; ShortGPT's block influence; size of the weights; the last ones; chance.
        share: neighbouring blocks that share one set of matrices, each with norms of its own. 1 shares nothing.
        gate_steps: training steps of the gates.
        gate_lr: learning rate of the gates.
        polarise: weight of what drives the gates to 0 and 1; it rises to that over the first four fifths of the steps.
        pull: how strongly gates are drawn to 0, against how strongly away from their mean.
        cure: what the cure trains beside the norms: low-rank updates of the blocks' matrices, merged in the end, or the matrices.
        cure_steps: training steps of the cure; 0 leaves it out.
        lr: highest learning rate of the cure.
        rank: of the low-rank updates.
        tail: weight of the distance to the original's last layer.
        tail_on: the last hidden states, or the distribution of the next token.
        batch: windows a training step.
        seed: order of the windows, start of the updates, and blocks chosen by chance.
    When to use: a decoder that should be faster and smaller on any hardware, with text and some minutes to cure it.
    When not: models of few blocks; where no quality may be lost; before `--by influence` was tried, which takes one forward
        pass and was no worse than gates on the small models of claim P07.
        Sharing saves bytes, not time, and only where tensors are kept once: the folder for transformers has them written out
        (`nett store add` keeps equal tensors once).
    Cost: gate_steps forward and backward passes of the model, cure_steps of the smaller one with a forward pass of the
        original; both in float32 in memory.
    Source: Liu, Zhao, Li, "FoldGPT: Simple and Effective Large Language Model Compression Scheme" (P07), section 3; no code of
        theirs was found, and the form of the gates and of polarisation is ours after Zhuang et al., "Neuron-level
        Structured Pruning using Polarization Regularizer" (NeurIPS 2020). Influence: Men et al., "ShortGPT".
    """
    from nett.weights.block_scores import block_norms, influence
    from nett.weights.cure import cured
    from nett.weights.fold_gates import trained_gates
    from nett.weights.fold_sharing import bytes_held, unfolded
    from nett.weights.fold_sharing import share as shared
    from nett.weights.stack import cut, stack_of
    from nett.weights.token_batches import checked

    stack = stack_of(model)
    count = len(stack)
    gone = round(ratio * count)
    if gone >= count:
        most = 1 - 0.5 / count
        raise Refused(
            f"ratio = {ratio} removes all {count} blocks", hint=f"At most one less: --ratio below {most:.3f}."
        )
    notes = (
        [] if gone or not ratio else [f"ratio = {ratio} of {count} blocks is less than half a block: none was removed"]
    )
    if not gone and share == 1:
        return Shrunk(model, {"blocks before": count, "blocks after": count}, notes)
    windows = checked(model, windows, batch)
    model.eval()
    before = bytes_held(model)
    figures: dict[str, Any] = {"blocks before": count, "blocks after": count - gone, "bytes before": before}
    scores: Array
    order: list[int]
    charts: list[Mapping[str, Any]] = []
    if by == "gates" and gone:
        gates = trained_gates(
            model,
            stack,
            windows,
            kept=1 - gone / count,
            steps=gate_steps,
            batch=batch,
            rate=gate_lr,
            polarise=polarise,
            pull=pull,
            seed=seed,
        )
        scores, order = gates.values, gates.order()
        figures["gates that are neither open nor closed"] = int(((scores > 0.1) & (scores < 0.9)).sum())
        charts.append(_lines("Gates while they were trained", gates.path))
    else:
        scores = _scores(
            by, count, seed, lambda: influence(model, stack, windows, batch=batch), lambda: block_norms(stack)
        )
        order = [int(i) for i in np.argsort(scores, kind="stable")]
    removed = sorted(order[:gone])
    figures |= {"scores of the blocks": [round(float(s), 6) for s in scores], "blocks removed": removed}
    charts.append(
        {"kind": "bars", "title": f"Blocks by {by}", "rows": [[f"block {i}", float(s)] for i, s in enumerate(scores)]}
    )
    small, said = cut(model, stack, [i for i in range(count) if i not in removed])
    notes += said
    inner = stack_of(small)
    if share > 1:
        groups = shared(inner, share)
        figures["blocks that share"] = [g for g in groups if len(g) > 1]
    if cure_steps:
        losses = cured(
            small,
            inner,
            model,
            windows,
            by=cure,
            steps=cure_steps,
            batch=batch,
            peak=lr,
            tail=tail,
            on=tail_on,
            rank=rank,
            seed=seed,
        )
        figures |= {"loss of the cure's first tenth": _mean(losses[: max(1, len(losses) // 10)])}
        figures |= {"loss of the cure's last tenth": _mean(losses[-max(1, len(losses) // 10) :])}
        points = [[i, loss] for i, loss in enumerate(losses)]
        charts.append(
            {"kind": "lines", "title": "Curing", "xlabel": "step", "ylabel": "nats a token", "series": {"loss": points}}
        )
    figures["bytes after"] = bytes_held(small)
    if share > 1:
        small = unfolded(small)
        figures["bytes after, written out"] = bytes_held(small)
        notes.append(
            f"Groups of {share} blocks share their matrices: {figures['bytes after']:,} bytes where equal tensors are kept once, "
            f"{figures['bytes after, written out']:,} as transformers has them. It saves no time, and each block has a KV cache of its own."
        )
    return Shrunk(small, figures, notes, charts)


def _scores(by: str, count: int, seed: int, influence: Any, norms: Any) -> Array:
    """What each block is worth: the least go first."""
    if by in ("gates", "influence"):  # gates without a block to remove are not trained
        return np.asarray(influence())
    if by == "magnitude":
        return np.asarray(norms())
    if by == "last":
        return np.arange(count, 0, -1, dtype=np.float64)
    return np.random.default_rng(seed).permutation(count).astype(np.float64)


def _lines(title: str, path: Array) -> Mapping[str, Any]:
    steps = range(0, len(path), max(1, len(path) // 100))
    series = {f"block {i}": [[s, float(path[s, i])] for s in steps] for i in range(path.shape[1])}
    return {"kind": "lines", "title": title, "xlabel": "step", "ylabel": "gate", "series": series}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))

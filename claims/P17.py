"""P17: which mixtures route neighbouring tokens to the same experts, and how large a cache of experts should be.

Small mixtures (eight experts, two chosen) are trained on code, prose and sums, byte by byte, alike but for one thing: ``plain``
has a mixture in every layer and no shared expert; ``shared`` has an expert beside them that every token meets; ``alternate``
has a mixture in every second layer, and in the others a dense network as wide as two experts. The shared expert of the others
is there too, zero and not trained, so that all are of one family (Qwen2-MoE) and differ in nothing else. They are profiled by ``nett experts profile`` on text that was held out.

Consistency is compared as SRP in segments of 16 tokens, less what choices with the same shares would give by chance: models
that use experts unevenly would otherwise look consistent. How far an expert is at home in a kind of text, or in certain bytes,
is the share of the uncertainty about its being chosen that the kind (or the byte) takes away.

The rule of the verdict (written before any number was known; differences are paired by seed):

1. Plain is more consistent than shared, and than alternate: with every seed.
2. Over the experts of plain, consistency goes more with being at home in a kind of text than in certain bytes (Spearman's
   correlations), with every seed.
3. In two thirds of all models the cache from which more begins to pay less has 1.5 to 2.5 times the experts that a token chooses.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from claims.mixture_bed import write_tokenizer
from claims.mixture_texts import KINDS, Texts, texts
from nett.core.claims import Check, Figure, Result
from nett.core.torch_model import quiet
from nett.experts.locality import best_fit, chance_fit
from nett.experts.opening import opened
from nett.experts.profile import profile
from nett.experts.tracing import traced

PAPER = "P17"
CLAIM = (
    "Models with a mixture in every layer and without shared experts route most locally; experts at home in a domain add more to "
    "that than experts at home in certain tokens; caches of about twice the active experts balance effect and size."
)
METHODS = ["experts/profile"]

ARMS = ("plain", "shared", "alternate")
SIZE, WIDTH, LAYERS, EXPERTS, CHOSEN = 64, 64, 4, 8, 2
STEPS, ROWS, WINDOW, BALANCE = 220, 12, 96, 0.01  # balance: of the loss that evens out the load
TEXT, SAMPLES, LENGTH, SEGMENT = 600_000, 24, 256, 16

Say = Callable[[str], None]


def run(seeds: Sequence[int], progress: Say) -> Result:
    """All arms with all seeds."""
    torch.set_num_threads(1)
    figures, excess = list[Figure](), {arm: list[float]() for arm in ARMS}
    home, knees = list[tuple[float, float]](), list[float]()
    for seed in seeds:
        text = texts(TEXT, seed)
        for arm in ARMS:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                nats = _written(folder, arm, seed, text)
                told = profile(
                    [str(folder / "model")],
                    text=",".join(f"{kind}={folder / kind}.txt" for kind in KINDS),
                    samples=SAMPLES,
                    length=LENGTH,
                    similar=0,
                    threads=1,
                )
                if arm == "plain":
                    home.append(_home(folder / "model", text))
            srp = told["srp"][str(SEGMENT)]
            excess[arm].append(srp["value"] - srp["chance"])
            knees.append(told["advice"]["pays"]["multiple"])
            twice = told["advice"]["twice"]
            size = f"{EXPERTS} experts"
            note = f"{nats:.3f} nats a byte"
            figures += [
                Figure(arm, size, seed, f"SRP, segments of {SEGMENT}", 100 * srp["value"], "%", note),
                Figure(arm, size, seed, f"SRP by chance, segments of {SEGMENT}", 100 * srp["chance"]),
                Figure(arm, size, seed, "cache that pays, of the experts chosen", knees[-1], "x"),
                Figure(arm, size, seed, "hits at best, twice the experts chosen", 100 * twice["hits"]),
                Figure(arm, size, seed, "hits of LRU, twice the experts chosen", 100 * twice["hits_lru"]),
                Figure(
                    arm,
                    size,
                    seed,
                    "busiest expert over its even share",
                    max(x["balance"]["largest"] for x in told["layers"]),
                    "x",
                ),
            ]
            progress(
                f"seed {seed}, {arm}: {note}, SRP {srp['value']:.3f}, by chance {srp['chance']:.3f}, cache {knees[-1]:g}x"
            )
        for what, value in zip(("a kind of text", "certain bytes"), home[-1], strict=True):
            figures.append(
                Figure("plain", f"{EXPERTS} experts", seed, f"consistency with being at home in {what}", value, "rho")
            )
        progress(f"seed {seed}: correlation with kinds {home[-1][0]:.2f}, with bytes {home[-1][1]:.2f}")
    checks = [
        Check(
            f"plain is more consistent than {arm}, beyond chance",
            all(a > b for a, b in zip(excess["plain"], excess[arm], strict=True)),
            "; ".join(f"{100 * a:.1f} and {100 * b:.1f}" for a, b in zip(excess["plain"], excess[arm], strict=True)),
        )
        for arm in ("shared", "alternate")
    ]
    checks += [
        Check(
            "consistency goes more with kinds of text than with bytes",
            all(kind > byte for kind, byte in home),
            "; ".join(f"{kind:.2f} and {byte:.2f}" for kind, byte in home),
        ),
        Check(
            "the cache that pays has 1.5 to 2.5 times the experts that a token chooses, in two thirds of the models",
            sum(1.5 <= k <= 2.5 for k in knees) >= 2 / 3 * len(knees),
            ", ".join(f"{k:g}" for k in knees),
        ),
    ]
    return Result(checks, figures, [], {}, _because(excess))


def _because(excess: Mapping[str, Sequence[float]]) -> list[str]:
    said = [
        f"{arm} {100 * np.mean(v):.1f} (seeds {', '.join(f'{100 * x:.1f}' for x in v)})" for arm, v in excess.items()
    ]
    return [
        f"SRP beyond chance, in points, mean over seeds: {'; '.join(said)}",
        f"models of 0.5 million weights, {STEPS * ROWS * WINDOW:,} bytes of training; those of the paper have 3 to 57 billion, and "
        "those that it trains itself 1.4 billion on some 42 billion tokens",
    ]


# -- models -----------------------------------------------------------------------------------------------------


def _written(folder: Path, arm: str, seed: int, text: Texts) -> float:
    """Train an arm and write it beside the held-out texts; nats a byte on these."""
    model = _trained(arm, seed, text)
    with quiet():
        model.save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    for kind in KINDS:
        (folder / f"{kind}.txt").write_bytes(text.judge[kind])
    return float(np.mean([_loss(model, text.judge[kind]) for kind in KINDS]))


def _model(arm: str, seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.Qwen2MoeConfig(
        vocab_size=256,
        hidden_size=SIZE,
        intermediate_size=CHOSEN * WIDTH,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
        decoder_sparse_step=2 if arm == "alternate" else 1,
        router_aux_loss_coef=BALANCE,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.Qwen2MoeForCausalLM(config).float()
    model.set_experts_implementation("eager")
    if arm != "shared":
        for name, value in model.named_parameters():
            if ".shared_expert" in name:
                value.requires_grad_(False).zero_()
    return model.train()


def _trained(arm: str, seed: int, text: Texts) -> Any:
    model = _model(arm, seed)
    some = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(some, lr=4e-3, weight_decay=0.1, betas=(0.9, 0.95))
    warm = STEPS // 10

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / (STEPS - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    held = [torch.from_numpy(np.frombuffer(text.learn[k], np.uint8).astype(np.int64)) for k in KINDS]
    draw = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        starts = [int(torch.randint(0, len(held[r % 3]) - WINDOW - 1, (1,), generator=draw)) for r in range(ROWS)]
        rows = torch.stack([held[r % 3][s : s + WINDOW + 1] for r, s in enumerate(starts)])
        out = model(input_ids=rows[:, :-1], output_router_logits=True, use_cache=False)
        loss = F.cross_entropy(out.logits.flatten(0, 1), rows[:, 1:].flatten()) + BALANCE * out.aux_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _loss(model: Any, text: bytes) -> float:
    held = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))[: 40 * (WINDOW + 1)]
    rows = held[: len(held) // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1)
    return float(
        F.cross_entropy(model(input_ids=rows[:, :-1], use_cache=False).logits.flatten(0, 1), rows[:, 1:].flatten())
    )


# -- experts at home --------------------------------------------------------------------------------------------


def _home(folder: Path, text: Texts) -> tuple[float, float]:
    """Spearman's correlation, over all experts, of consistency beyond chance with being at home in a kind of text, and in bytes."""
    from scipy.stats import spearmanr

    windows = [
        torch.from_numpy(
            np.frombuffer(text.judge[k], np.uint8).astype(np.int64)[: SAMPLES * LENGTH].reshape(-1, LENGTH)
        )
        for k in KINDS
    ]
    consistency, kinds, letters = list[float](), list[float](), list[float]()
    with opened(str(folder), threads=1) as model:
        rounds = [(number, ids, 0) for number, ids in enumerate(windows)]
        parts = [layers for _, layers in traced(model, rounds, [None] * len(model.layers))]
        label = np.concatenate([np.full(w.numel(), i) for i, w in enumerate(windows)])
        byte = np.concatenate([w.numpy().ravel() for w in windows])
        for at in range(len(model.layers)):
            chosen = np.concatenate([part[at][0] for part in parts])  # [windows, length, k]
            for e in range(EXPERTS):
                on = (chosen == e).any(-1)
                if not on.any():
                    continue
                counts = np.lib.stride_tricks.sliding_window_view(on, SEGMENT, axis=1).sum(-1)
                fit = best_fit(np.bincount(counts.ravel(), minlength=SEGMENT + 1)).value
                consistency.append(fit - chance_fit(np.array([on.mean()]), SEGMENT))
                kinds.append(_told_by(label, on.ravel()))
                letters.append(_told_by(byte, on.ravel()))
    return float(spearmanr(consistency, kinds).statistic), float(spearmanr(consistency, letters).statistic)


def _told_by(variable: Any, on: Any) -> float:
    """The share of the uncertainty about a yes or no that a variable takes away: mutual information over entropy."""
    whole = _entropy(on.mean())
    total = np.bincount(variable)
    yes = np.bincount(variable, weights=on)
    some = total > 0
    left = float((total[some] / on.size * _entropy(yes[some] / total[some])).sum())
    return (whole - left) / whole if whole else 0.0


def _entropy(share: Any) -> Any:
    p = np.clip(np.asarray(share, np.float64), 1e-15, 1 - 1e-15)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))

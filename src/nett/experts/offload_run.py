"""The work of ``nett experts offload``: a text through an offloaded model, and all policies on what it asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core import torch_model
from nett.core.checkpoint import open_checkpoint
from nett.core.device import use_device
from nett.core.errors import Refused, UsageError
from nett.core.progress import report
from nett.core.report import Page
from nett.core.report.words import size
from nett.core.texts import tokenizer_of
from nett.core.windows import Windows, read_windows
from nett.experts.caching import ONLINE, POLICIES, Policy, rate_of
from nett.experts.expert_traces import ENDINGS, Steps, read_steps, write_steps
from nett.experts.offloading import Offloaded
from nett.experts.page_cache import cached_bytes
from nett.experts.page_cache import drop as forget_file
from nett.experts.view import experts_view

_WHERE = "experts/offload"


def run_offload(
    asset: str,
    *,
    text: Path | None,
    experts: int,
    policy: Policy,
    span: int,
    step: int,
    samples: int,
    length: int,
    drop: bool,
    compare: bool,
    record: Path | None,
    threads: int,
) -> dict[str, Any]:
    """See :func:`nett.experts.offload`."""
    if asset.endswith(ENDINGS):
        if text is not None or compare or record is not None:
            raise UsageError("a trace is not run, so --text, --compare and --record mean nothing to it", where=_WHERE)
        steps = read_steps(Path(asset))
        held = experts or 2 * steps.chosen
        return {"trace": asset, "experts": held, "span": span, "policies": policies(steps, held, span)}
    if text is None:
        hint = "Add --text FILE; or give a trace (.jsonl, .npy) in place of the model."
        raise UsageError("runs a model on a text", where=_WHERE, hint=hint)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(use_device("cpu", threads, "the experts room"), "blas"):
        windows, chosen = _windows(asset, text, samples, length)
        held = experts or 2 * chosen
        before = _ready(asset)
        with Offloaded(asset, held, policy, span, forget=drop) as offloaded:
            ran = run(offloaded.model, windows, step, "offloaded")
            after = own_memory()
            steps = offloaded.steps
            found = _found(offloaded, ran, before, after)
        if record is not None:
            write_steps(record, steps)
        told = {
            "model": asset,
            "text": windows.as_json() | {"step": step},
            "experts": min(held, max(steps.experts)),
            "policy": policy,
            "span": span,
            "run": found,
            "policies": policies(steps, held, span),
        }
        if compare:
            told["whole"] = _whole(asset, windows, step, ran)
    return told


def _windows(asset: str, text: Path, samples: int, length: int) -> tuple[Windows, int]:
    """The text as windows of what the model can look back on; and how many experts a token is given."""
    with open_checkpoint(asset, dense=True) as checkpoint:
        layers = experts_view(checkpoint)
        config = checkpoint.config() or {}
        inner = config.get("text_config")
        said = inner if isinstance(inner, dict) else config
        most = int(said.get("max_position_embeddings") or length)
        vocabulary = int(said.get("vocab_size") or 1 << 31)
        found = read_windows(
            text, tokenizer_of(checkpoint), samples=samples, length=min(length, most), vocabulary=vocabulary
        )
        return found, layers[0].chosen


def run(model: Any, windows: Windows, step: int, name: str) -> dict[str, Any]:
    """Every window from its first token on, ``step`` tokens at a time, each with the keys and values of those before it.
    ``logits``: those behind the last token of each window [windows, vocabulary]; seconds, and the mean loss a token."""
    import torch

    loss, last, ids = 0.0, [], torch.from_numpy(windows.ids)
    report.begin(name, windows.tokens, "tokens")
    began = time.perf_counter()
    with torch.no_grad():
        for window in ids:
            past = None
            before: Any = None
            for at in range(0, len(window), step):
                part = window[None, at : at + step]
                out = model(input_ids=part, past_key_values=past, use_cache=True)
                logits = out.logits[0].float()
                known = logits[:-1] if before is None else torch.cat([before, logits[:-1]])
                following = part[0, 1:] if before is None else part[0]
                loss -= float(known.log_softmax(-1).gather(-1, following[:, None]).double().sum())
                past, before = out.past_key_values, logits[-1:]
                report.step(part.numel())
            last.append(before[0])
    seconds = time.perf_counter() - began
    report.end()
    return {"logits": torch.stack(last), "seconds": seconds, "loss": loss / (windows.tokens - len(ids))}


def _ready(asset: str) -> int | None:
    """:func:`own_memory` of a process that has all code of the model, and nothing of its weights."""
    import accelerate  # noqa: F401  # of the code

    with open_checkpoint(asset, dense=True) as checkpoint, torch_model.described(checkpoint) as folder:
        torch_model.kind_of(folder)
    return own_memory()


def own_memory() -> int | None:
    """Bytes of memory that are this process's own and no file's; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    except (OSError, StopIteration):
        return None


def _found(offloaded: Offloaded, ran: Mapping[str, Any], before: int | None, after: int | None) -> dict[str, Any]:
    tokens = int(sum(len(w) for w in offloaded.steps.wanted[:1]))
    requests = sum(c.requests for c in offloaded.caches)
    hits = sum(c.hits for c in offloaded.caches)
    held = offloaded.held_bytes
    files = offloaded.checkpoint.files
    cached = [cached_bytes(f) for f in files]
    return {
        "steps": tokens,
        "requests": requests,
        "hits": hits,
        "rate": hits / max(1, requests),
        "rate_by_layer": [c.hits / max(1, c.requests) for c in offloaded.caches],
        "bytes_read": offloaded.bytes_read,
        "bytes": {
            "model": offloaded.checkpoint.nbytes,
            "experts": sum(layer.nbytes for layer in offloaded.layers),
            "held_dense": held["dense"],
            "held_experts": held["experts"],
        },
        "resident": {
            "own": None if before is None or after is None else after - before,
            "page_cache": None if None in cached else sum(n for n in cached if n is not None),
            "dropped": offloaded.drop,
        },
        "perplexity": math.exp(min(80.0, ran["loss"])),
        "seconds": ran["seconds"],
    }


def _whole(asset: str, windows: Windows, step: int, ran: Mapping[str, Any]) -> dict[str, Any]:
    """The same on the whole model in memory."""
    before = own_memory()
    with open_checkpoint(asset, dense=True) as checkpoint:
        model = torch_model.model(checkpoint).eval()
        model.set_experts_implementation("eager")
        for value in [*model.parameters(), *model.buffers()]:
            value.data = value.data.clone()  # in memory of its own, where products are rounded as in the other
        for file in checkpoint.files:
            forget_file(file, written=True)
        whole = run(model, windows, step, "in memory")
        after = own_memory()
    return {
        "largest_difference": float((whole["logits"] - ran["logits"]).abs().max()),
        "resident": {"own": None if before is None or after is None else after - before},
        "seconds": whole["seconds"],
        "slower_seconds": ran["seconds"] / whole["seconds"],
    }


def policies(steps: Steps, held: int, span: int) -> list[dict[str, Any]]:
    """Every policy at several sizes of cache, over all mixtures."""
    most = max(steps.experts)
    if held < 1:
        raise UsageError(f"experts = {held}: at least 1 must be in memory", where=_WHERE)
    sizes = sorted(
        {min(most, s) for s in (steps.chosen, 2 * steps.chosen, most // 4, most // 2, 3 * most // 4, held)} - {0}
    )
    found = []
    report.begin("policies", len(sizes), "sizes")
    for count in sizes:
        for name in POLICIES:
            rates = [rate_of(w, e, count, name, span) for w, e in zip(steps.wanted, steps.experts, strict=True)]
            requests = sum(r.requests for r in rates)
            if not requests:
                raise Refused("the trace asks for no expert")
            found.append(
                {
                    "experts": count,
                    "policy": name,
                    "rate": sum(r.hits for r in rates) / requests,
                    "requests": requests,
                    "hits": sum(r.hits for r in rates),
                    "first_uses": sum(r.first for r in rates),
                    "bound": name == "optimum" and all(count >= w.shape[1] for w in steps.wanted),
                }
            )
        report.step(1)
    report.end()
    return found


def words_of(told: Mapping[str, Any]) -> list[str]:
    """What was run, and hit rates of all policies by size."""
    lines = []
    if ran := told.get("run"):
        sizes, resident = ran["bytes"], ran["resident"]
        tokens = told["text"]["windows"] * told["text"]["length"]
        lines.append(
            f"{told['experts']} experts a layer in memory, {told['policy']}: {ran['rate']:.1%} of {ran['requests']:,} requests hit, "
            f"{tokens / ran['seconds']:.3g} tokens/s, {size(ran['bytes_read'] / tokens)} read a token, perplexity "
            f"{ran['perplexity']:.4g}"
        )
        own = "" if resident["own"] is None else f"; memory grew by {size(resident['own'])}"
        cached = (
            ""
            if resident["page_cache"] is None
            else f", the page cache holds {size(resident['page_cache'])} of the file"
        )
        lines.append(
            f"weights in memory: {size(sizes['held_dense'] + sizes['held_experts'])} of {size(sizes['model'])}, "
            f"{size(sizes['held_experts'])} of them experts{own}{cached}"
        )
    if whole := told.get("whole"):
        lines.append(
            f"the whole model in memory: {1 / whole['slower_seconds'] if whole['slower_seconds'] < 1 else whole['slower_seconds']:.3g} "
            f"times {'as slow' if whole['slower_seconds'] < 1 else 'as fast'}, logits differ by "
            f"{whole['largest_difference']:.3g} at most"
        )
    lines.append(f"{'hit rate by experts a layer':<28}" + "".join(f"{n:>8}" for n in _sizes(told)))
    for name in POLICIES:
        rates = [p["rate"] for p in told["policies"] if p["policy"] == name]
        label = name if name in ONLINE else f"{name} (looks ahead)"
        lines.append(f"{label:<28}" + "".join(f"{r:>8.1%}" for r in rates))
    return lines


def _sizes(told: Mapping[str, Any]) -> Sequence[int]:
    return sorted({p["experts"] for p in told["policies"]})


def page_of(told: Mapping[str, Any]) -> Page:
    """The same as a page."""
    page = Page("nett experts offload", str(told.get("model") or told.get("trace")))
    for line in words_of(told)[: -1 - len(POLICIES)]:
        page.text(line)
    series = {
        name: [(float(p["experts"]), 100 * p["rate"]) for p in told["policies"] if p["policy"] == name]
        for name in POLICIES
    }
    page.lines(
        series, title="Hit rate by size of the cache", xlabel="experts a layer in memory", ylabel="% of requests"
    )
    page.table(
        ["experts", "policy", "hit rate", "hits", "requests", "first uses"],
        [[p["experts"], p["policy"], p["rate"], p["hits"], p["requests"], p["first_uses"]] for p in told["policies"]],
    )
    return page

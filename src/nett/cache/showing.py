"""What ``nett cache METHOD MODEL`` does: continue a prompt, judge on a text, and say both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.cache.judging import bed_of, judge
from nett.cache.opening import opened
from nett.cache.policy import Policy, check_model, ledger
from nett.core.errors import Refused
from nett.core.progress import report
from nett.core.report.answer import answered
from nett.core.report.words import size
from nett.core.staging import check_folders
from nett.core.windows import read_windows


def show(
    policy: Policy,
    asset: str,
    *,
    prompt_file: Path | None,
    tokens: int,
    text: Path | None,
    samples: int,
    context: int,
    follow: int,
    device: str,
    threads: int,
    json: Path | None,
    dry_run: bool,
) -> dict[str, Any]:
    """See :func:`nett.cache.engine.run`."""
    import torch

    check_folders(json)
    model, tokenizer = opened(asset, device, threads)
    check_model(model, policy.card.key)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    most = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 60)
    told: dict[str, Any] = {
        "model": asset,
        "policy": policy.card.key,
        "parameters": policy.parameters,
        "budget": str(policy.budget),
    }
    if text is not None:
        _fits(context + follow, most, "--context and --follow", text)
        windows = read_windows(text, tokenizer, samples=samples, length=context + follow, vocabulary=vocabulary)
        told["text"] = windows.as_json()
    if prompt_file is not None:
        ids = _prompt(prompt_file, tokenizer, device)
        _fits(int(ids.shape[1]) + tokens, most, "the prompt and --tokens", prompt_file)
        told["prompt_tokens"] = int(ids.shape[1])
    if dry_run:
        return {"plan": told}
    if text is not None:
        report.begin("judging", 1, "texts")
        bed = bed_of(model, torch.from_numpy(windows.ids).to(device), context)
        told["judged"] = judge(model, bed, policy).as_json()
        report.end()
    if prompt_file is not None:
        how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        start = int(ids.shape[1])
        full = model.generate(ids, **how)[0, start:].tolist()
        with policy.on(model):
            cache = policy.cache(model)
            mine = model.generate(ids, past_key_values=cache, **how)[0, start:].tolist()
        same = next((i for i, (a, b) in enumerate(zip(full, mine, strict=False)) if a != b), min(len(full), len(mine)))
        told["ledger"] = ledger(cache)
        told["full"], told["continuation"] = tokenizer.decode(full), tokenizer.decode(mine)
        told["same_tokens"] = same
    return answered(told, _words, json=json)


def _fits(length: int, most: int, what: str, where: Path) -> None:
    if length > most:
        raise Refused(f"{what} come to {length:,} tokens, and the model has {most:,} positions", where=where)


def _prompt(file: Path, tokenizer: Any, device: str) -> Any:
    if not file.is_file():
        raise Refused("there is no such file", where=file)
    words = file.read_text(encoding="utf-8", errors="replace")
    ids = tokenizer(words, return_tensors="pt").input_ids
    if not ids.numel():
        raise Refused("holds no text", where=file)
    return ids.to(device)


def _words(told: Mapping[str, Any]) -> list[str]:
    lines = []
    if "ledger" in told:
        held = told["ledger"]
        lines += [
            f"full cache:  {told['full']!r}",
            f"{told['policy']}: {told['continuation']!r}",
            f"the first {told['same_tokens']} tokens are the same; {size(held['bytes'])} held of {size(held['full_bytes'])}"
            f" ({held['share']:.1%}), {max(held['slots'])} slots for {held['seen']} tokens",
        ]
    if "judged" in told:
        j = told["judged"]
        lines.append(
            f"on {told['text']['windows']} texts: KL {j['kl']['mean']:.5f} ({j['kl']['low']:.5f} to {j['kl']['high']:.5f})"
            f" nats a token, {j['flips']['mean']:.2%} of the most likely tokens changed, perplexity"
            f" {j['perplexity_full']:.4g} to {j['perplexity']:.4g}; {size(j['bytes'])} held of {size(j['full_bytes'])}"
            f" ({j['share']:.1%})"
        )
    return lines

"""kvpress on given token windows, in its own environment: REQUEST.json. Needs nothing of nett.

Each batch of prompts is run once, with what its hooks are given; every press then makes its cache of that by its own hook,
and the continuation is given token by token at its true positions, as kvpress' pipeline does. KVzip repeats the prompt by
itself, text by text; CAM acts while tokens come. A file for each press, share and batch; those that are there are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def presses(share: float, context: int) -> dict[str, Any]:
    """Name -> press that leaves ``int(context * share)`` slots; the last element of a name after a comma is a setting."""
    import kvpress as k

    gone, kept = 1 - share, int(context * share)
    gone = 1 - (kept + 0.5) / context  # so that its int() gives exactly these
    small = max(1, min(32, kept // 2))

    def cam(base: Any, again: Any) -> Any:
        decoding = k.CAMPress(base_press=again, compression_interval=1, target_size=kept)
        return k.PrefillDecodingPress(prefilling_press=base, decoding_press=decoding)

    return {
        "Knorm": k.KnormPress(gone),
        "StreamingLLM": k.StreamingLLMPress(gone),
        "SnapKV, window 64": k.SnapKVPress(gone, window_size=min(64, context // 2)),
        "SnapKV, window 32": k.SnapKVPress(gone, window_size=small),
        "ExpectedAttention": k.ExpectedAttentionPress(gone),
        "ObservedAttention": k.ObservedAttentionPress(gone),
        "MergingPress on SnapKV": k.MergingPress(k.SnapKVPress(gone, window_size=small)),
        "MergingPress on ExpectedAttention": k.MergingPress(k.ExpectedAttentionPress(gone)),
        "KVzip": k.KVzipPress(gone),
        "KVzip, layerwise": k.KVzipPress(gone, layerwise=True),
        "CAM on Knorm": cam(k.KnormPress(gone), k.KnormPress()),
        "CAM on StreamingLLM": cam(k.StreamingLLMPress(gone), k.StreamingLLMPress()),
    }


def recorded(model: Any, ids: Any) -> tuple[list[Any], Any]:
    """What each attention module's hook is given after a prompt, and the logits at its end."""
    import torch
    from transformers import DynamicCache

    found: list[Any] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        found.append((module, kwargs, layer.keys, layer.values, output[1]))

    model.set_attn_implementation("eager")
    hooks = [b.self_attn.register_forward_hook(note, with_kwargs=True) for b in model.model.layers]
    try:
        with torch.no_grad():
            last = model(ids, past_key_values=DynamicCache()).logits[:, -1:]
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation("sdpa")
    return found, last


def compressed(press: Any, model: Any, found: list[Any]) -> Any:
    """A cache that the press' own hook has made smaller."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    press.post_init_from_model(model)
    with torch.no_grad():
        for module, kwargs, keys, values, attentions in found:
            cache.update(keys.clone(), values.clone(), module.layer_idx)
            press.forward_hook(module, [], {**kwargs, "past_key_values": cache}, [None, attentions])
    return cache


def followed(model: Any, cache: Any, ids: Any, context: int, last: Any) -> Any:
    """Log probabilities ``[b, follow, vocabulary]`` of the continuation's tokens, given one by one."""
    import torch

    logits = [last]
    with torch.no_grad():
        for at in range(context, ids.shape[1] - 1):
            where = torch.full((len(ids), 1), at)
            logits.append(model(ids[:, at : at + 1], past_key_values=cache, position_ids=where).logits)
    return torch.cat(logits, 1).float().log_softmax(-1)


def held(cache: Any) -> float:
    """Bytes of keys and values, of all rows."""
    return float(sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)))


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    context, batch, out = int(asked["context"]), int(asked["batch"]), Path(asked["out"])
    windows = torch.from_numpy(np.load(asked["ids"]))
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    for block in model.model.layers:
        block.self_attn.rotary_emb = model.model.rotary_emb
    for number, start in enumerate(range(0, len(windows), batch)):
        ids = windows[start : start + batch]
        left = {
            (name, share): out / f"{name}-{share}-{number}.npz"
            for share in asked["shares"]
            for name in presses(share, context)
            if not (out / f"{name}-{share}-{number}.npz").is_file()
        }
        if not left:
            continue
        found, last = recorded(model, ids[:, :context])
        with torch.no_grad():
            expected = model(ids).logits[:, context - 1 : -1].float().log_softmax(-1)
        for (name, share), file in left.items():
            press = presses(share, context)[name]
            if name.startswith("KVzip"):
                rows = [alone(model, press, row[None], context) for row in ids]
                mine, size = torch.cat([m for m, _ in rows]), share * sum(s for _, s in rows)
                size += held_of(model, ids, context)
            elif name.startswith("CAM"):
                cache = compressed(press, model, found)
                with press(model):
                    mine = followed(model, cache, ids, context, last)
                    sums = press.decoding_press._running_attn_sum.values()
                    size = held(cache) + sum(t.numel() * t.element_size() for t in sums)
            else:
                cache = compressed(press, model, found)
                mine = followed(model, cache, ids, context, last)
                size = held(cache)
            kl = (expected.exp() * (expected - mine)).sum(-1).mean(-1).double().numpy()
            at = ids[:, context:, None]
            nll = -mine.gather(-1, at)[..., 0].mean(-1).double().numpy()
            partial = file.with_suffix(".part")
            with partial.open("wb") as stream:
                np.savez(stream, kl=kl, nll=nll, bytes=size / len(ids))
            partial.rename(file)
            print(f"batch {number}: {name} at {share:.0%}: KL {kl.mean():.5f}", flush=True)


def alone(model: Any, press: Any, ids: Any, context: int) -> tuple[Any, float]:
    """(log probabilities, bytes of the whole prompt) of one text under a press that runs the prompt by itself."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad(), press(model):
        last = model(ids[:, :context], past_key_values=cache).logits[:, -1:]
    whole = held(cache)
    mine = followed(model, cache, ids, context, last)
    for block in model.model.layers:
        block.self_attn.masked_key_indices = None
    return mine, whole


def held_of(model: Any, ids: Any, context: int) -> float:
    """Bytes of the tokens that follow the prompt, of all rows."""
    config = model.config
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * model.model.layers[0].self_attn.head_dim * 4
    return float(len(ids) * (ids.shape[1] - 1 - context) * a_token)


if __name__ == "__main__":
    main()

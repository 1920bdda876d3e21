"""A language model on windows of a text, run once for all probes of its cache: what went into attention, and what policies of
the cache room would save there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final
from weakref import WeakValueDictionary

from nett.core.edge import Edge
from nett.core.errors import Refused
from nett.scan.protocol import Asset, Finding

_RUNS: WeakValueDictionary[tuple[Any, ...], Run] = WeakValueDictionary()  # while a probe holds one


@final
class Run:
    """``bed``: prompts of ``context`` tokens that were run once, and ``follow`` that come after them. Refused where the
    model is no language model whose attention sees every token."""

    def __init__(self, path: str, text: Path, samples: int, context: int, follow: int) -> None:
        self.path, self.text, self.samples, self.context, self.follow = path, text, samples, context, follow

    @cached_property
    def opened(self) -> tuple[Any, Any]:
        """(model, bed)."""
        import torch

        from nett.cache.judging import bed_of
        from nett.cache.opening import opened
        from nett.cache.policy import check_model
        from nett.core.windows import read_windows

        model, tokenizer = opened(self.path, "cpu", 0)
        check_model(model, self.path)
        length = self.context + self.follow
        most = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 60)
        if length > most:
            raise Refused(
                f"context and follow come to {length:,} tokens, the model has {most:,} positions", where=self.path
            )
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        windows = read_windows(self.text, tokenizer, samples=self.samples, length=length, vocabulary=vocabulary)
        return model, bed_of(model, torch.from_numpy(windows.ids), self.context)

    @property
    def layers(self) -> Sequence[Sequence[tuple[Any, ...]]]:
        """Layer by layer what each batch of prompts gave to its attention."""
        return list(zip(*(one.layers for one in self.opened[1].recordings), strict=True))

    def judged(self, method: str, **given: Any) -> Any:
        """What a policy holds and changes on these windows."""
        from nett.cache.engine import serve
        from nett.cache.judging import judge
        from nett.core.cards import find_card

        model, bed = self.opened
        return judge(model, bed, serve(find_card(method, "cache"), given))


def run_of(asset: Asset, text: str, samples: int, context: int, follow: int) -> Run:
    """The run of a model on a text; the same one while any probe holds it. Refused where there is no such text."""
    if not Path(text).is_file():
        raise Refused("there is no such text", where=text)
    key = (asset.path, text, samples, context, follow)
    found = _RUNS.get(key)
    if found is None:
        found = _RUNS[key] = Run(asset.path, Path(text), samples, context, follow)
    return found


def tried(
    kind: str, asset: Asset, run: Run, ways: Mapping[str, Mapping[str, Any]], most: float
) -> tuple[dict[str, Any], list[Finding]]:
    """Figures of each policy (share of the bytes held, KL), and findings for those that change no more than ``most`` nats."""
    figures, found = dict[str, Any](), []
    for method, given in ways.items():
        try:
            judged = run.judged(method, **given)
        except Refused as error:
            figures[f"{method}, left out"] = str(error)
            continue
        kl, freed = float(judged.kl.mean()), round(judged.full_bytes - judged.bytes)
        figures[f"{method}: bytes held"] = judged.bytes / judged.full_bytes
        figures[f"{method}: KL"] = kl
        if kl <= most and freed > 0:
            options = " ".join(f"--{k} {v}" for k, v in given.items())
            words = f"nett cache {method} {shlex.quote(asset.path)} {options} --text {shlex.quote(str(run.text))}"
            target = asset.label("KV cache of a window")
            edge = Edge(kind, target, (), f"cache/{method}", freed, None, None, "measured", words)
            found.append(Finding(edge))
    return figures, found

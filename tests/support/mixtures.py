"""Mixtures of experts of some kilobytes, of several families, as transformers writes them; and duplicates planted in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nett.core import tiny
from nett.core.torch_model import quiet
from nett.experts.protocol import Experts, Layer

_COMMON = {
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_NAMES: Mapping[str, tuple[str, str, str]] = {  # family -> class, what it calls experts, and their width
    "mixtral": ("Mixtral", "num_local_experts", "intermediate_size"),
    "qwen2_moe": ("Qwen2Moe", "num_experts", "moe_intermediate_size"),
    "qwen3_moe": ("Qwen3Moe", "num_experts", "moe_intermediate_size"),
    "olmoe": ("Olmoe", "num_experts", "intermediate_size"),
    "phimoe": ("Phimoe", "num_local_experts", "intermediate_size"),
    "deepseek_v3": ("DeepseekV3", "n_routed_experts", "moe_intermediate_size"),
    "granitemoe": ("GraniteMoe", "num_local_experts", "intermediate_size"),
}
FAMILIES = tuple(_NAMES)
_MORE: Mapping[str, Mapping[str, Any]] = {
    "qwen2_moe": {"intermediate_size": 40, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"intermediate_size": 40, "head_dim": 8},
    "deepseek_v3": {
        "num_key_value_heads": 4, "intermediate_size": 40, "first_k_dense_replace": 1, "num_hidden_layers": 3, "n_group": 1,
        "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8, "n_shared_experts": 1,
    },
}  # fmt: skip


def write_mixture(
    folder: Path,
    family: str = "mixtral",
    *,
    experts: int = 4,
    chosen: int = 2,
    width: int = 16,
    seed: int = 0,
    **more: Any,
) -> Path:
    """A folder of random weights, float32, with a tokenizer; the router's rows are large, so that choices are clear."""
    import transformers

    name, count, wide = _NAMES[family]
    said = _COMMON | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128}
    said = {**said, **_MORE.get(family, {}), count: experts, wide: width, "num_experts_per_tok": chosen, **more}
    config = getattr(transformers, f"{name}Config")(**said)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() > 1 and value.is_floating_point():
                value.normal_(0, value.shape[-1] ** -0.5)
            if key.endswith("e_score_correction_bias"):
                value.uniform_(-0.1, 0.1)
    with quiet():
        model.save_pretrained(folder)
    tiny._write_tokenizer(folder, int(said["vocab_size"]))
    return folder


def logits_of(folder: Path, ids: Any) -> Any:
    """What transformers itself makes of it, float32 [windows, length, vocabulary]."""
    import transformers

    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        return model(torch.as_tensor(ids)).logits


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def rewrite(folder: Path, out: Path, change: Any) -> Path:
    """A copy of a folder with ``change(tensors, config)``, both changed in place."""
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    held, config = tensors(folder), json.loads((folder / "config.json").read_text())
    change(held, config)
    save_file({k: v.contiguous() for k, v in held.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    for file in folder.glob("tokenizer*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def permuted(folder: Path, out: Path, orders: Sequence[Sequence[int]]) -> Path:
    """The same Mixtral with its experts (and the router's rows) in another order in each layer: the same function."""

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        old = dict(held)
        for layer, order in enumerate(orders):
            stem = f"model.layers.{layer}.block_sparse_moe"
            held[f"{stem}.gate.weight"] = old[f"{stem}.gate.weight"][list(order)]
            for new, e in enumerate(order):
                for role in ("w1", "w2", "w3"):
                    held[f"{stem}.experts.{new}.{role}.weight"] = old[f"{stem}.experts.{e}.{role}.weight"].clone()

    return rewrite(folder, out, change)


def upcycled(
    folder: Path, out: Path, *, noise: float = 0.0, row_noise: float = 1e-3, seed: int = 0
) -> tuple[Path, list[list[int]]]:
    """A Mixtral in which each expert stands twice, its neurons in another order the second time, and moved by normal
    noise of ``noise`` times their deviation; router rows of twins differ by ``row_noise``. A token chooses as many experts as
    there were twice over. Also, for each layer, the number of the twin of each expert."""
    rng = np.random.default_rng(seed)
    twins: list[list[int]] = []

    def change(held: dict[str, Any], config: dict[str, Any]) -> None:
        count = config["num_local_experts"]
        config["num_local_experts"] = 2 * count
        config["num_experts_per_tok"] = 2 * config["num_experts_per_tok"]
        for layer in range(config["num_hidden_layers"]):
            stem = f"model.layers.{layer}.block_sparse_moe"
            rows = held[f"{stem}.gate.weight"]
            place = rng.permutation(2 * count)
            twin = np.empty(2 * count, int)
            twin[place[:count]], twin[place[count:]] = place[count:], place[:count]
            twins.append(twin.tolist())
            new = torch.empty(2 * count, rows.shape[1])
            old = {(e, r): held.pop(f"{stem}.experts.{e}.{r}.weight") for e in range(count) for r in ("w1", "w2", "w3")}
            for e in range(count):
                order = rng.permutation(old[e, "w1"].shape[0])
                for copy in (0, 1):
                    to = int(place[e + copy * count])
                    gap = torch.from_numpy(rng.normal(size=rows.shape[1]).astype(np.float32))
                    new[to] = rows[e] + copy * row_noise * gap
                    for role in ("w1", "w2", "w3"):
                        value = old[e, role].clone()
                        if copy:
                            value = value[:, order] if role == "w2" else value[order]
                            moved = torch.from_numpy(rng.normal(size=value.shape).astype(np.float32))
                            value = value + noise * value.std() * moved
                        held[f"{stem}.experts.{to}.{role}.weight"] = value
            held[f"{stem}.gate.weight"] = new

    return rewrite(folder, out, change), twins


class Paper(Layer):
    """A layer without weights."""

    def __init__(self, count: int = 8, chosen: int = 2, pools: int = 1) -> None:
        self.number, self.name, self.count, self.width, self.hidden, self.chosen = 0, "layer", count, 1, 1, chosen
        each = count // pools
        self.pools = [range(p * each, (p + 1) * each) for p in range(pools)]
        self.least = max(chosen, 2 * pools if pools > 1 else 1)

    def read(self) -> Experts:
        raise NotImplementedError

    def router(self) -> Any:
        raise NotImplementedError

"""What a LoRA adapter that nett writes says of itself, as PEFT reads it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nett.core.checkpoint.base import Checkpoint
from nett.core.checkpoint.lora import PREFIX

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def factor_keys(module: str) -> tuple[str, str]:
    """The adapter's keys of the factors A and B of a linear layer."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def is_causal(ground: Checkpoint) -> bool:
    """Whether the config names a causal language model."""
    architecture = ((ground.config() or {}).get("architectures") or [""])[0]
    return bool(architecture.endswith(_CAUSAL))


def config_json(
    ground: Checkpoint, rank: int, factored: Collection[str], everything: Collection[str], **more: Any
) -> bytes:
    """``adapter_config.json``: scaling 1, one rank for all modules in ``factored``.

    ground: what the adapter belongs to. everything: all modules that could have factors. more: options of PEFT's
    that differ from an adapter of plain factors.
    """
    said: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_causal(ground) else None,
        "base_model_name_or_path": str(Path(ground.path).resolve()),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": _short(set(factored), set(everything)),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "ensure_weight_tying": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return (json.dumps(said | more, indent=2, ensure_ascii=False) + "\n").encode()


def _short(factored: set[str], everything: set[str]) -> list[str]:
    """Last parts of the modules' names where these mean the same modules, as people write them; else full names."""
    found = set()
    for last in {m.rpartition(".")[2] for m in factored}:
        mine = {m for m in everything if m.rpartition(".")[2] == last}
        found |= {last} if mine <= factored else mine & factored
    return sorted(found)

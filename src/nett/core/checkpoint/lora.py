"""What a LoRA adapter's config and keys mean: W + scaling B A, for which tensors, at which scaling.

LoRA, arXiv:2106.09685, section 4.1; rank-stabilised scaling, arXiv:2312.03732, equation 7. The layout of the folder
is PEFT's; what cannot be added to weights, or needs more than the folder to know, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.json_text import read_json_object
from nett.core.dtypes import Array
from nett.core.errors import Refused
from nett.core.jit import jit

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)
# Options that make the adapter something else than a low-rank sum on the base's weights.
_OTHER = {
    "use_dora": "DoRA (weight-decomposed LoRA)",
    "alora_invocation_tokens": "activated LoRA, which acts on some tokens only",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "Monte Carlo LoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron layers",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on parameters of experts (target_parameters)",
    "trainable_token_indices": "trainable tokens (trainable_token_indices)",
}
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal")  # others also change the base's own weights
# Options that say how it was made or where it goes, which its keys and shapes say too; or that are minded elsewhere.
_MINDED = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_MOST_REPEATS = 3  # in a pattern: matching takes a time that is a power of this, and the patterns are anyone's


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json``, refused unless it describes a LoRA that can be added to weights."""
    file = folder / CONFIG
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise Refused(
            f"is an adapter of the PEFT type {config.get('peft_type')!r}; nett applies those of type 'LORA'", where=file
        )
    for option, what in _OTHER.items():
        if config.get(option):
            raise Refused(f"uses {what}; nett applies plain LoRA", where=file, hint=_MERGE)
    for option, value in config.items():
        if value and option not in _MINDED:
            raise Refused(
                f"sets the option {option!r}, which nett does not know",
                where=file,
                hint=f"{_MERGE} If it does not change what the adapter computes, take it out of {CONFIG}.",
            )
    for option, kind in (("rank_pattern", dict), ("alpha_pattern", dict), ("modules_to_save", list)):
        if config.get(option) is not None and not isinstance(config[option], kind):
            raise Refused(f"{option} is {config[option]!r}, expected a {kind.__name__}", where=file)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _HARMLESS_STARTS:
        raise Refused(
            f"init_lora_weights = {start!r}: this adapter belongs on a base that it changed at its start",
            where=file,
            hint="Save it with PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA.",
        )
    return config


_MERGE = "Merge it with PEFT first (merge_and_unload, save_pretrained) and give nett the merged folder."


@final
@dataclass
class LowRank:
    """The factors of one module: keys of the adapter's file. ``embedding``: PEFT keeps those transposed."""

    module: str
    a: str = ""
    b: str = ""
    bias: str = ""
    embedding: bool = False


def sort_keys(file: Path, keys: Sequence[str]) -> tuple[dict[str, LowRank], dict[str, str]]:
    """The adapter's keys: module -> factors, and tensor name -> key of those that replace a tensor whole."""
    modules: dict[str, LowRank] = {}
    whole: dict[str, str] = {}
    for key in keys:
        bare = key.removeprefix(PREFIX)
        found = _PART.fullmatch(bare)
        if found is None:
            if ".lora_" in bare or "token_adapter" in bare:
                what = "DoRA" if "magnitude" in bare else "a kind of adapter that nett does not apply"
                raise Refused(f"{key!r} belongs to {what}", where=file, hint=_MERGE)
            bare = re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", bare).replace(".base_layer.", ".")
            if bare in whole:
                raise Refused(f"{key!r} and {whole[bare]!r} both replace {bare!r}", where=file)
            whole[bare] = key
            continue
        entry = modules.setdefault(found["module"].replace(".base_layer", ""), LowRank(found["module"]))
        slot = "bias" if found["leaf"] == "bias" else found["part"][-1].lower()
        if getattr(entry, slot) or (slot == "bias" and found["part"] != "B"):
            raise Refused(f"{key!r} comes twice for one module, or is not known", where=file)
        setattr(entry, slot, key)
        entry.embedding |= found["part"].startswith("embedding")
    for module, entry in modules.items():
        for slot in ("a", "b"):
            if not getattr(entry, slot):
                other = entry.b or entry.a or entry.bias
                raise Refused(f"{other!r} has no partner lora_{slot.upper()}", where=file)
        if not module:
            raise Refused(f"{entry.a!r} names no module", where=file)
    return modules, whole


def scaling_of(config: Mapping[str, Any], module: str, where: Path) -> tuple[int, float]:
    """Rank and scaling of a module: alpha / r, or alpha / sqrt(r) where rank-stabilised; patterns as in PEFT."""
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r", 8), where)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8), where)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not isfinite(alpha):
        raise Refused(f"gives {module!r} the rank {rank!r} and lora_alpha {alpha!r}", where=where)
    return rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any, where: Path) -> Any:
    for pattern, value in (patterns or {}).items():
        if len(re.findall(r"[*+{]", pattern)) > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
            raise Refused(f"the pattern {pattern!r} repeats too much to be tried in bounded time", where=where)
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise Refused(f"the pattern {pattern!r} is no regular expression: {error}", where=where) from error
    return default


@jit
def add_product(out: Array, left: Array, right: Array, scaling: Any, start: int) -> None:
    """``out`` += scaling * (left @ right)[start : start + out.size], flattened; ``left`` begins at the first row
    touched. Sums in one fixed order, so that the bits do not depend on how a tensor is cut into ranges."""
    columns = right.shape[1]
    first = start // columns
    total = np.empty(columns, out.dtype)
    at, stop = start, start + out.size
    while at < stop:
        row = at // columns
        low = at - row * columns
        high = min(columns, stop - row * columns)
        total[low:high] = 0
        for k in range(right.shape[0]):
            weight = left[row - first, k]
            for j in range(low, high):
                total[j] += weight * right[k, j]
        for j in range(low, high):
            out[at - start + j - low] += scaling * total[j]
        at += high - low

"""The sizes of a model that decide what it costs to serve; from the settings, or from a transformers config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nett.core.errors import Refused, UsageError

Count = Annotated[int, Field(ge=1, le=10**9)]
Some = Annotated[int, Field(ge=0, le=10**9)]
_PLAIN = ("opt", "gpt2", "gpt_neox", "gptj", "bloom", "falcon", "phi")  # two matrices an MLP; all others have three
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_WINDOWS = ("sliding_window", "attention_chunk_size")


class Latent(BaseModel):
    """Multi-head latent attention (DeepSeek): keys and values of a token are ``rank`` + ``rope`` numbers for all heads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rank: Count
    rope: Count
    nope: Count
    value: Count
    query_rank: Some = 0  # 0: queries are made by one matrix


class Dimensions(BaseModel):
    """Of a decoder; ``intermediate`` is the width of an expert. ``gated``: three matrices an expert, otherwise two."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Some = 0  # 0: as many as heads
    head_dim: Some = 0  # 0: hidden / heads
    intermediate: Count
    experts: Some = 0  # 0: a dense model
    top_k: Some = 0
    shared_intermediate: Some = 0  # width of what every token passes beside its experts
    moe_layers: int = Field(default=-1, ge=-1)  # -1: all, or none without experts
    dense_intermediate: Some = 0  # 0: intermediate
    vocabulary: Some = 0  # 0: the head is not counted
    gated: bool = True
    latent: Latent | None = None

    @model_validator(mode="after")
    def _fits(self) -> Dimensions:
        filled = {
            "kv_heads": self.kv_heads or self.heads,
            "head_dim": self.head_dim or self.hidden // self.heads,
            "moe_layers": self.moe_layers if self.moe_layers >= 0 else self.layers * bool(self.experts),
            "dense_intermediate": self.dense_intermediate or self.intermediate,
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        wrong = None
        if self.experts and not 1 <= self.top_k <= self.experts:
            wrong = f"top_k = {self.top_k} of {self.experts} experts; taken is 1 to {self.experts}"
        elif self.heads % self.kv_heads:
            wrong = f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}"
        elif self.moe_layers > self.layers * bool(self.experts):
            wrong = f"moe_layers = {self.moe_layers}, but there are {self.layers} layers and {self.experts} experts"
        if wrong:
            raise ValueError(wrong)
        return self

    @property
    def matrices(self) -> int:
        """Of an expert or MLP."""
        return 3 if self.gated else 2

    @property
    def expert_weights(self) -> int:
        """Numbers of one expert."""
        return self.matrices * self.hidden * self.intermediate

    @property
    def cache_numbers(self) -> int:
        """Numbers of a token's keys and values in all layers."""
        if self.latent:
            return self.layers * (self.latent.rank + self.latent.rope)
        return self.layers * 2 * self.kv_heads * self.head_dim


def read_config(path: Path) -> tuple[Dimensions, list[str]]:
    """Dimensions of a model folder or its config.json, and notes on what is not modelled."""
    file = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=file, hint="model: a folder with a config.json, or the dimensions themselves.") from error  # fmt: skip
    except ValueError as error:
        raise UsageError(f"is no JSON: {error}", where=file) from error
    if not isinstance(found, dict):
        raise UsageError("is not the config of a model", where=file)
    return of_config(found, str(file))


def of_config(config: Mapping[str, Any], where: str) -> tuple[Dimensions, list[str]]:
    """The same from the parsed config; the names of Mixtral, Qwen-MoE, OLMoE, Phi-MoE, Granite, gpt-oss, DeepSeek, Llama 4."""
    if config.get("is_encoder_decoder"):
        raise Refused("is an encoder-decoder; what is simulated is a decoder", where=where)
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]

    def asked(*names: str) -> int:
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        raise UsageError(f"has no {' or '.join(names)}", where=where, hint="Give the dimensions in the settings: model: {layers: …, hidden: …}")  # fmt: skip

    def known(*names: str) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int)), 0)

    layers, experts = asked("num_hidden_layers", "n_layer"), known(*_EXPERTS)
    width = asked("intermediate_size", "ffn_dim", "n_inner")
    own = known("moe_intermediate_size") or width
    kind = str(config.get("model_type", ""))
    if not experts and any("moe" in str(k) for k in (kind, *config)):
        raise UsageError(f"looks like a mixture of experts, but has none of {', '.join(_EXPERTS)}", where=where)
    shared = known("shared_expert_intermediate_size") or known("n_shared_experts") * own
    given: dict[str, Any] = {
        "layers": layers,
        "hidden": asked("hidden_size", "n_embd"),
        "heads": asked("num_attention_heads", "n_head"),
        "kv_heads": known("num_key_value_heads"),
        "head_dim": known("head_dim"),
        "intermediate": own if experts else width,
        "experts": experts,
        "top_k": asked("num_experts_per_tok", "num_experts_per_token", "moe_topk") if experts else 0,
        "shared_intermediate": own if kind.startswith("llama4") else shared,
        "moe_layers": sum(_is_moe(config, i) for i in range(layers)) if experts else 0,
        "dense_intermediate": known("intermediate_size_mlp") or width,
        "vocabulary": known("vocab_size"),
        "gated": kind not in _PLAIN,
    }
    if known("kv_lora_rank"):
        given["latent"] = Latent(
            rank=asked("kv_lora_rank"), rope=asked("qk_rope_head_dim"), nope=asked("qk_nope_head_dim"),
            value=asked("v_head_dim"), query_rank=known("q_lora_rank"),
        )  # fmt: skip
        given |= {"head_dim": given["latent"].nope + given["latent"].rope, "kv_heads": given["heads"]}
    windows = [n for n in _WINDOWS if config.get(n) and config.get("use_sliding_window", True)]
    notes = [f"{n} = {config[n]} is not modelled: attention looks at the whole context" for n in windows]
    try:
        return Dimensions(**given), notes
    except ValueError as error:
        raise UsageError(f"has dimensions that do not fit: {_first(error)}", where=where) from error


def _is_moe(config: Mapping[str, Any], layer: int) -> bool:
    if layer in (config.get("mlp_only_layers") or ()) or layer < (config.get("first_k_dense_replace") or 0):
        return False
    steps = [config.get(n) or 1 for n in ("decoder_sparse_step", "interleave_moe_layer_step")]
    return all((layer + 1) % s == 0 for s in steps) and layer % (config.get("moe_layer_freq") or 1) == 0


def _first(error: ValueError) -> str:
    found = getattr(error, "errors", None)
    return str(found()[0]["msg"]) if found else str(error)

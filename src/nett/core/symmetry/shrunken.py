"""The proof for transformers' models: on a small random model of the same family and the same kinds of layers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused, missing_extra
from nett.core.symmetry.groups import Refusal, Symmetry
from nett.core.symmetry.proof import Proof, arrays_of, float64_throughout, prove, scrambled
from nett.core.symmetry.transformer import of_config

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")
_VOCAB, _LENGTH = 40, 12


def prove_config(symmetry: Symmetry, config: Mapping[str, Any], *, seed: int = 0) -> tuple[Symmetry, list[Proof]]:
    """``symmetry``, as :func:`of_config` derived it, without the groups whose kind fails on a small random model.

    The small model has two layers, the kinds of heads (multi-head, grouped, one KV head) and all else of ``config``.
    A group is judged by the one of its name in the small model's layers; a head by the head of its kind.
    """
    model = small_model(config)
    stored = {n: t.detach().double().numpy() for n, t in model.state_dict().items()}
    small = of_config(
        model.config.to_dict() | {"architectures": [type(model).__name__]}, {n: t.shape for n, t in stored.items()}
    )
    tensors = scrambled(stored, seed=seed)
    for alias, name in small.aliases.items():
        tensors[alias] = tensors[name]
    proved, proofs = prove(small, _function(model, seed), tensors, seed=seed)
    failed = {kind_of(r.name): r.why for r in proved.refused[len(small.refused) :]}
    seen = {kind_of(g.name) for g in small.groups}
    refused = []
    for group in symmetry.groups:
        kind = kind_of(group.name)
        if kind in failed:
            refused.append(Refusal(group.name, failed[kind]))
        elif kind not in seen:
            refused.append(Refusal(group.name, "the small model on which groups are proved has no such group"))
    return symmetry.without(refused), proofs


def small_model(config: Mapping[str, Any]) -> Any:
    """A random float64 model of the family of ``config`` in evaluation mode, two layers, a few units of each kind."""
    try:
        transformers = importlib.import_module("transformers")
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise missing_extra("transformers", "models", "proving the symmetry of a model") from error
    given = dict(config)
    kind = given.pop("model_type", None)
    for key in ("layer_types", "rope_scaling", "torch_dtype", "dtype", "quantization_config", "auto_map"):
        given.pop(key, None)
    rope = given.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:  # scaled positions are sized for the large model
        given["rope_parameters"] = {k: v for k, v in rope.items() if k in ("rope_theta", "partial_rotary_factor")} | {
            "rope_type": "default"
        }
    try:
        full = transformers.AutoConfig.for_model(kind, **given)
    except Exception as error:  # a value that this version of transformers does not take
        raise Refused(f"transformers makes no config of model_type {kind!r}: {error}") from error
    queries = getattr(full, "num_attention_heads", None)
    if not isinstance(queries, int) or not isinstance(getattr(full, "hidden_size", None), int):
        raise Refused(f"the family {kind!r} has no attention heads of one kind, and its symmetries are not known")
    kv = getattr(full, "num_key_value_heads", None) or queries
    size = getattr(full, "head_dim", None) or full.hidden_size // queries
    few_kv, each = min(kv, 2), min(queries // kv, 2)
    few = few_kv * each
    new_size = 16 if size >= 16 else size
    changed: dict[str, Any] = {"num_attention_heads": few, "hidden_size": few * new_size, "num_hidden_layers": 2}
    changed |= {
        "num_key_value_heads": few_kv,
        "head_dim": new_size,
        "vocab_size": _VOCAB,
        "max_position_embeddings": 64,
    }
    changed |= {
        "intermediate_size": 24,
        "n_inner": 24,
        "ffn_dim": 24,
        "hidden_dim": 24,
        "word_embed_proj_dim": few * new_size,
    }
    changed |= {"image_size": 8, "patch_size": 4, "type_vocab_size": 2}
    for name, value in changed.items():
        mapped = (getattr(full, "attribute_map", None) or {}).get(name, name)
        if getattr(full, mapped, None) is not None and mapped in given | full.to_dict():
            given[mapped] = value
    for name in _TOKENS:
        if isinstance(getattr(full, name, None), int | list):
            given[name] = 1
    named = getattr(transformers, (given.get("architectures") or ["-"])[0], None)
    with _quiet(transformers):
        torch.manual_seed(0)
        try:
            small = transformers.AutoConfig.for_model(kind, **given)
            small._attn_implementation = "eager"
            model = named(small) if named is not None else transformers.AutoModel.from_config(small)
        except Exception as error:  # whatever the family's own code says to a small config
            raise Refused(
                f"no small model of the family {kind!r} can be made, on which its symmetry could be proved: {error}"
            ) from error
    return model.double().eval()


def small_inputs(model: Any, seed: int) -> dict[str, Any]:
    """Random input for a small model, as keyword arguments."""
    import torch

    rng = np.random.default_rng(seed)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.from_numpy(rng.normal(size=(2, model.config.num_channels, 8, 8)))}
    return {"input_ids": torch.from_numpy(rng.integers(2, _VOCAB, (2, _LENGTH)))}


def _function(model: Any, seed: int) -> Any:
    import torch

    inputs = small_inputs(model, seed)

    def function(weights: Mapping[str, Array]) -> list[Array]:
        state = {n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in weights.items()}
        with torch.no_grad(), float64_throughout():
            outputs = torch.func.functional_call(model, state, (), {**inputs, "return_dict": True}, tie_weights=False)
        return arrays_of({k: v for k, v in outputs.items() if k != "past_key_values"})

    return function


def kind_of(name: str) -> str:
    """A group's name without its numbers: what is proved once for all layers and heads."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


@contextlib.contextmanager
def _quiet(transformers: Any) -> Any:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)

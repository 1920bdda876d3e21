"""compressed-tensors folders: what transformers and vLLM load. Never a ``sparsity_config``, which vLLM refuses.

``pack-quantized`` for weights alone, ``int-quantized`` where the inputs are rounded to 8 bits too; the layout is that of
the package's documentation and of its readers (compressed-tensors 0.18 to 0.20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from nett.core.blocks import Linear
from nett.core.checkpoint.compressed_numbers import packed_columns, packed_rows, unpacked_columns, unpacked_rows
from nett.core.errors import Refused
from nett.weights.formats.base import Format, Written
from nett.weights.formats.dense import Dense
from nett.weights.protocol import Answer, Quantised, Tensor

_EVERYWHERE = (4, 8)  # bits that vLLM reads


@final
class CompressedTensors(Format):
    """Packed where the answer is quantised, dense otherwise."""

    name = "compressed-tensors"

    def tensors(self, linear: Linear, answer: Answer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import torch

        if not isinstance(answer, Quantised):
            return Dense().tensors(linear, answer)
        stem, codes = linear.module, answer.codes.cpu().numpy()
        grid = {
            "bits": answer.bits,
            "group": answer.group,
            "symmetric": answer.zero is None,
            "activations": answer.activations,
        }
        if answer.activations is not None:
            if answer.bits != 8 or answer.activations != 8 or answer.zero is not None or answer.scale.shape[1] > 1:
                raise Refused("activations are rounded with weights of 8 bits, a scale a row, around zero", where=stem)
            return {f"{stem}.weight": answer.codes, f"{stem}.weight_scale": answer.scale}, grid
        found = {
            f"{stem}.weight_packed": torch.from_numpy(packed_rows(codes, answer.bits)),
            f"{stem}.weight_scale": answer.scale,
            f"{stem}.weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
        }
        if answer.zero is not None:
            zeros = packed_columns(answer.zero.cpu().numpy(), answer.bits)
            found[f"{stem}.weight_zero_point"] = torch.from_numpy(zeros)
        return found, grid

    def value(self, linear: Linear, tensors: Mapping[str, Tensor], kind: Mapping[str, Any]) -> Tensor:
        import torch

        stem, scale = linear.module, tensors.get(f"{linear.module}.weight_scale")
        if scale is None:
            return Dense().value(linear, tensors, kind)
        if kind["activations"] is not None:
            return Quantised(tensors[f"{stem}.weight"], scale, None, 8).dense()
        words = tensors[f"{stem}.weight_packed"].cpu().numpy()
        codes, zero = torch.from_numpy(unpacked_rows(words, kind["bits"], linear.columns)), None
        if not kind["symmetric"]:
            words = tensors[f"{stem}.weight_zero_point"].cpu().numpy()
            zero = torch.from_numpy(unpacked_columns(words, kind["bits"], 0, linear.rows)).to(scale.device)
        return Quantised(codes.to(scale.device), scale, zero, kind["bits"]).dense()

    def config(self, config: dict[str, Any], layers: Sequence[Written], kept: Sequence[str]) -> dict[str, Any]:
        kinds = _kinds([w for w in layers if "group" in w.kind])
        if not kinds:
            return config
        dense = [w.linear.module for w in layers if "group" not in w.kind] + list(kept)
        groups = {}
        for number, (key, modules) in enumerate(kinds.items()):
            targets = ["Linear"] if len(kinds) == 1 else modules
            groups[f"group_{number}"] = _group(targets, *key)
        formats = {g["format"] for g in groups.values()}
        return config | {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": formats.pop() if len(formats) == 1 else "mixed-precision",
                "quantization_status": "compressed",
                "global_compression_ratio": None,
                "kv_cache_scheme": None,
                "ignore": dense,
                "config_groups": groups,
            }
        }

    def notes(self, layers: Sequence[Written]) -> list[str]:
        quantised = [w.kind for w in layers if "group" in w.kind]
        odd = ", ".join(map(str, sorted({k["bits"] for k in quantised} - {*_EVERYWHERE})))
        said = [f"{odd} bits a weight: transformers loads it with compressed-tensors 0.18 or newer; vLLM reads 4 and 8"]
        zeros = [
            "zero points: transformers loads them with compressed-tensors 0.17 (its versions 0.18 to 0.20 refuse the"
            " shape that they themselves write); vLLM reads them"
        ]
        return said * bool(odd) + zeros * any(not k["symmetric"] for k in quantised)


def _kinds(layers: Sequence[Written]) -> dict[tuple[Any, ...], list[str]]:
    """(bits, group, symmetric, activations) -> modules. One scale a row is group -1, but where it is also that of the
    group size of others."""

    def key(kind: Mapping[str, Any], group: int) -> tuple[Any, ...]:
        return kind["bits"], group, kind["symmetric"], kind["activations"]

    cut = {key(w.kind, w.kind["group"]) for w in layers if w.kind["group"] < w.linear.columns}
    found: dict[tuple[Any, ...], list[str]] = {}
    for linear, kind in layers:
        own = key(kind, kind["group"])
        found.setdefault(own if own in cut else key(kind, -1), []).append(linear.module)
    return found


def _group(targets: list[str], bits: int, group: int, symmetric: bool, activations: int | None) -> dict[str, Any]:
    strategy = "channel" if group == -1 else "group"
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None if group == -1 else group,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    inputs = None
    if activations is not None:
        inputs = weights | {"num_bits": activations, "strategy": "token", "dynamic": True, "observer": None}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": "pack-quantized" if activations is None else "int-quantized",
    }

"""Every mixture of experts of a checkpoint behind one view, from headers alone: which layers, which experts, and where the
matrices of an expert lie; whatever family the model is of.

Two layouts are known: a tensor for each matrix of each expert (``….experts.3.gate_proj.weight``, or ``w1``, ``w3``, ``w2``), and
all experts of a layer in two tensors ``[E, 2I, H]`` and ``[E, H, I]`` (``….input_linear.weight``, ``….gate_up_proj``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.checkpoint import Checkpoint, TensorInfo
from nett.core.checkpoint.json_text import text_part
from nett.core.errors import Refused
from nett.core.expert_map import MARK
from nett.core.match import layer_number
from nett.experts.layouts import FileLayer as FileLayer
from nett.experts.layouts import Place as Place

_ONE = re.compile(r"(?P<mixture>.+)\.experts\.(?P<expert>\d+)\.(?P<role>.+)")
_ROLES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_ALL = re.compile(
    r"(?P<mixture>.+?)(?:\.experts)?\.(?P<role>gate_up_proj|input_linear|down_proj|output_linear)(?:\.weight)?"
)
_FUSED = {"gate_up_proj": "gate_up", "input_linear": "gate_up", "down_proj": "down", "output_linear": "down"}
_ROUTERS = {"gate", "router"}
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")  # of configs
WIDTHS = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_REFUSED = {
    "gpt_oss": "gate and up interleaved, transposed, with biases, and usually in MXFP4",
    "gpt_oss_moe": "gate and up interleaved, transposed, with biases",
    "llama4": "transposed, and called with inputs that are already weighted",
    "llama4_text": "transposed, and called with inputs that are already weighted",
    "dbrx": "all experts in one matrix, transposed",
}


def experts_view(checkpoint: Checkpoint) -> list[FileLayer]:
    """The mixtures of a checkpoint in the order of their layers.

    Refused, from headers, for a dense model, experts that are missing or differ in shape, a router whose rows are not the
    experts, counts that differ from the config's, and layouts that nett does not know, by name.
    """
    where, config = checkpoint.path, checkpoint.config() or {}
    text = text_part(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    if kind in _REFUSED:
        raise Refused(f"stores experts as {kind} does ({_REFUSED[kind]}), which nett does not take apart", where=where)
    found = _found(checkpoint)
    if not found:
        raise Refused(
            "holds no experts: it is no mixture, or stores them in a way that nett does not know",
            where=where,
            hint="nett weights makes dense models smaller.",
        )
    chosen = int(next((text[k] for k in _CHOSEN if isinstance(text.get(k), int)), 1))
    pools = int(text.get("n_group") or 1)
    layers = []
    for mixture in sorted(found, key=lambda m: (layer_number(f"{m}.") or 0, m)):
        place = _place(checkpoint, mixture, found[mixture])
        number = layer_number(f"{mixture}.")
        if number is None:
            raise Refused(f"the experts of {mixture} lie in no layer", where=where)
        layers.append(FileLayer(checkpoint, place, number, chosen, pools))
    _check_counts(layers, text, config.get(MARK), where)
    return layers


def count_key(config: Mapping[str, Any]) -> str | None:
    """What the config calls its number of experts."""
    return next((k for k in COUNTS if isinstance(config.get(k), int)), None)


def width_key(config: Mapping[str, Any]) -> str | None:
    """What the config calls the neurons of an expert."""
    return next((k for k in WIDTHS if isinstance(config.get(k), int)), None)


def _found(checkpoint: Checkpoint) -> dict[str, dict[str, dict[int, str]]]:
    """Mixture -> role -> expert (0 where all are one tensor) -> name."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for name, info in checkpoint.tensors.items():
        one = _ONE.fullmatch(name)
        if one is not None:
            role = _ROLES.get(one["role"].removesuffix(".weight"))
            if role is None or len(info.shape) != 2:
                raise Refused(
                    f"the tensor {name!r} is no matrix of an expert that nett knows",
                    where=checkpoint.path,
                    hint=f"It knows {', '.join(_ROLES)}, without biases.",
                )
            found.setdefault(one["mixture"], {}).setdefault(role, {})[int(one["expert"])] = name
        elif len(info.shape) == 3 and (every := _ALL.fullmatch(name)) is not None:
            found.setdefault(every["mixture"], {}).setdefault(_FUSED[every["role"]], {})[0] = name
    return found


def _place(checkpoint: Checkpoint, mixture: str, roles: Mapping[str, Mapping[int, str]]) -> Place:
    where, tensors = checkpoint.path, checkpoint.tensors
    fused = "gate_up" in roles
    wanted = ("gate_up", "down") if fused else ("gate", "up", "down")
    lacking = [role for role in wanted if role not in roles]
    if lacking:
        raise Refused(f"the experts of {mixture} have no {' and no '.join(lacking)} matrices", where=where)
    count = 1 + max(e for role in wanted for e in roles[role])
    for role in wanted:
        missing = sorted(set(range(count)) - set(roles[role]))
        if missing:
            said = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
            raise Refused(f"{mixture} lacks the {role} matrices of experts {said} of {count}", where=where)
        shapes = {tensors[n].shape for n in roles[role].values()}
        if len(shapes) > 1:
            raise Refused(f"the {role} matrices of {mixture} differ in shape: {sorted(map(list, shapes))}", where=where)
    _check_shapes(mixture, {role: tensors[roles[role][0]] for role in wanted}, where)
    made = {role: [roles[role][e] for e in range(count)] for role in wanted}
    if fused:
        count = tensors[roles["gate_up"][0]].shape[0]
    hidden = tensors[roles["down"][0]].shape[-2]
    experts = {n for names in made.values() for n in names}
    around = [n for n in tensors if n.startswith(f"{mixture}.") and n not in experts]
    shared = [n for n in around if re.match(r"shared_experts?[._]", n.removeprefix(f"{mixture}."))]
    routing = [n for n in around if n not in shared and _routes(n.removeprefix(f"{mixture}."))]
    matrices = [n for n in routing if len(tensors[n].shape) == 2]
    if len(matrices) != 1:
        said = f"{len(matrices)} routers ({', '.join(matrices)})" if matrices else "no router"
        raise Refused(f"{mixture} has {said}", where=where)
    router = matrices[0]
    mapped = (checkpoint.config() or {}).get(MARK)
    if tensors[router].shape != (count, hidden) and not mapped:
        raise Refused(
            f"the router {router!r} has the shape {list(tensors[router].shape)}, its {count} experts on {hidden} inputs ask "
            f"for {[count, hidden]}",
            where=where,
        )
    beside = [n for n in routing if n != router]
    for name in beside:
        if tensors[name].shape[:1] != tensors[router].shape[:1]:
            raise Refused(f"{name!r} has the shape {list(tensors[name].shape)}, for {count} experts", where=where)
    return Place(mixture, made, router, beside, shared)


def _routes(name: str) -> bool:
    return bool(_ROUTERS & set(name.split("."))) or name.endswith("correction_bias")


def _check_shapes(mixture: str, infos: Mapping[str, TensorInfo], where: Any) -> None:
    down = infos["down"].shape
    other = next(v for k, v in infos.items() if k != "down").shape
    if "gate_up" in infos:
        good = other[0] == down[0] and other[1] == 2 * down[2] and other[2] == down[1]
    else:
        good = infos["gate"].shape == infos["up"].shape and other == down[::-1]
    if not good:
        said = ", ".join(f"{role} {list(info.shape)}" for role, info in infos.items())
        hint = "As [E, 2I, H] and [E, H, I]; models that store them transposed are not taken apart."
        raise Refused(f"the experts of {mixture} do not fit together: {said}", where=where, hint=hint)


def _check_counts(layers: Sequence[FileLayer], config: Mapping[str, Any], mark: Any, where: Any) -> None:
    if isinstance(mark, list):
        if any(said.get("map") is not None for said in mark):
            raise Refused(
                "keeps a router of more experts than it has: it was merged before",
                where=where,
                hint="Start from the model that it was made of, or write it with --router rows.",
            )
        return
    key = count_key(config)
    for layer in layers:
        if key is not None and layer.count != config[key]:
            raise Refused(f"{layer.name} has {layer.count} experts, its config says {key} = {config[key]}", where=where)
        if layer.count % len(layer.pools):
            raise Refused(
                f"its config asks for {len(layer.pools)} pools (n_group) of {layer.count} experts", where=where
            )
        if layer.chosen > layer.count:
            raise Refused(f"a token chooses {layer.chosen} of {layer.count} experts", where=where)

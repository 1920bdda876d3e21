"""Where the difference to a base goes in a PEFT adapter: factors, biases inside their layers, or whole modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.json_text import text_part
from nett.core.checkpoint.lora import PREFIX
from nett.core.checkpoint.lora_writing import config_json, factor_keys, is_causal
from nett.core.errors import Refused
from nett.merge.heads import is_tied
from nett.merge.job import Job

Kind = Literal["linear", "embedding", "bias", "whole"]
_EMBEDDING = re.compile(r"embed|wte$|wpe$|^shared$|\.shared$")  # the last parts of the names that transformers uses
_TURNED = ("gpt2", "openai-gpt", "imagegpt")  # model types whose layers are Conv1D: [in, out]


@final
@dataclass(frozen=True)
class Place:
    """A tensor of the base and how its difference is kept. ``turned``: the matrix lies as [in, out]."""

    name: str
    module: str
    kind: Kind
    turned: bool = False

    @property
    def has_no_factors(self) -> bool:
        """Kept as it is after the merge: norms, biases, embeddings that cannot have factors."""
        return self.kind in ("whole", "bias")

    @property
    def key(self) -> str:
        """The adapter's key of a tensor without factors; a bias lies inside the layer that the factors belong to."""
        return f"{PREFIX}{self.module}.base_layer.bias" if self.kind == "bias" else PREFIX + self.name


def places_of(job: Job, ground: Checkpoint) -> dict[str, Place]:
    """The place of every float tensor; Refused, from headers, where an adapter cannot hold its difference."""
    matrices = {n.rpartition(".")[0] for n, t in ground.tensors.items() if n.endswith(".weight") and len(t.shape) == 2}
    found = {}
    for task in job.tasks:
        info = ground.tensors.get(task.name)
        if info is None or info.shape != task.shape:
            what = "is no tensor of the base" if info is None else f"has the shape {list(info.shape)} in the base"
            raise Refused(
                f"{task.name!r} of the result, {list(task.shape)}, {what}: an adapter cannot hold that difference",
                where=ground.path,
                hint="Leave out --as-lora, which writes the whole model.",
            )
        if not task.copied:
            found[task.name] = _place(
                task.name, task.shape, matrices, tied=is_tied(ground), turned=is_turned(ground), ground=ground
            )
    return found


def is_turned(ground: Checkpoint) -> bool:
    """Whether the linear layers lie as [in, out]."""
    return (ground.config() or {}).get("model_type") in _TURNED


def _place(
    name: str, shape: Sequence[int], matrices: Iterable[str], *, tied: bool, turned: bool, ground: Checkpoint
) -> Place:
    module, _, leaf = name.rpartition(".")
    if leaf == "weight" and len(shape) == 2:
        if _EMBEDDING.search(module.rpartition(".")[2]):
            return Place(name, module, "whole" if tied and shape[0] == vocabulary(ground) else "embedding")
        return Place(name, module, "linear", turned)
    if leaf == "bias" and module in matrices:
        return Place(name, module, "bias")
    if module and leaf in ("weight", "bias") and len(shape) < 2:
        return Place(name, module, "whole")
    raise Refused(
        f"tensor {name!r} of shape {list(shape)} is neither a linear layer, an embedding, a norm nor a bias: nett does"
        " not know how PEFT would hold its difference",
        where=ground.path,
        hint="Leave out --as-lora, which writes the whole model.",
    )


def output_layer(ground: Checkpoint) -> str | None:
    """The name of the output layer of a causal language model."""
    return "lm_head.weight" if is_causal(ground) else None


def wrapped_modules(ground: Checkpoint, whole: Iterable[str]) -> list[str]:
    """The modules that PEFT replaces when told of ``whole``: it goes by the ends of names."""
    modules = {n.rpartition(".")[0] for n in ground.tensors}
    return sorted(m for m in modules if m.endswith(tuple(whole)))


def keys(place: Place) -> tuple[str, str]:
    """The adapter's keys of a matrix's factors A and B."""
    if place.kind == "embedding":
        return f"{PREFIX}{place.module}.lora_embedding_A", f"{PREFIX}{place.module}.lora_embedding_B"
    return factor_keys(place.module)


def adapter_config(ground: Checkpoint, placed: Mapping[str, Place], changed: Sequence[str], rank: int) -> bytes:
    """``adapter_config.json`` for the tensors that ``changed``: scaling 1, one rank for all."""
    used = [placed[name] for name in changed]
    factored = {p.module for p in used if p.kind != "whole"}
    everything = {p.module for p in placed.values() if p.kind in ("linear", "embedding")}
    whole = sorted({p.module for p in used if p.kind == "whole"})
    return config_json(
        ground,
        rank,
        factored,
        everything,
        modules_to_save=whole or None,
        bias="lora_only" if any(p.kind == "bias" for p in used) else "none",
        fan_in_fan_out=any(p.turned for p in used),
        ensure_weight_tying=is_tied(ground) and any(p.kind == "whole" and is_embedding(p) for p in used),
    )


def vocabulary(ground: Checkpoint) -> int | None:
    """How many rows the embeddings of tokens have, by the config."""
    config = ground.config() or {}
    found = config.get("vocab_size", text_part(config).get("vocab_size"))
    return found if isinstance(found, int) else None


def is_embedding(place: Place) -> bool:
    """Told by the name. Those that are kept whole are tied ones."""
    return bool(_EMBEDDING.search(place.module.rpartition(".")[2]))

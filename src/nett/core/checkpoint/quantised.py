"""From a quantised folder to the dense model that it stands for; or the sentence that says why not."""

from __future__ import annotations

from nett.core.checkpoint.base import Checkpoint
from nett.core.errors import Refused

_DEQUANTISE = "Load it with transformers, dequantise it (model.dequantize()), save it, and name that folder."
# quant_method of config.json -> what it is called, and how the user gets dense weights.
_OTHERS = {
    "bitsandbytes": ("bitsandbytes (LLM.int8, NF4 or FP4)", _DEQUANTISE),
    "gptq": ("GPTQ's own packing", "Dequantise it with GPTQModel, or name the model that it was made from."),
    "awq": ("AutoAWQ's own packing", "compressed-tensors converts it (its AutoAWQConverter); nett reads the result."),
    "fp8": ("fine-grained FP8", "Load it with transformers and FineGrainedFP8Config(dequantize=True), and save it."),
    "mxfp4": ("MXFP4", "Load it with transformers and Mxfp4Config(dequantize=True), and save it."),
}
# Endings of tensor names that give a format away where no config does.
_SIGNS = (
    (".qweight", "gptq", "GPTQ or AWQ"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes", "bitsandbytes NF4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes", "bitsandbytes FP4"),
    (".SCB", "bitsandbytes", "bitsandbytes LLM.int8"),
    (".weight_packed", "", "compressed-tensors"),
)


def dense_view(found: Checkpoint) -> Checkpoint:
    """``found`` itself where its weights are plain numbers; a view that dequantises them where nett knows how.

    Raises Refused, naming the format, for every other quantised checkpoint.
    """
    from nett.core.checkpoint.compressed import CONFIG_KEYS, CompressedCheckpoint

    config = (found.config() if found.format != "gguf" else None) or {}
    said = next((config[k] for k in CONFIG_KEYS if config.get(k)), None)
    if said is None:
        _no_signs(found)
        return found
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method is None and isinstance(said, dict):
        guess = "bitsandbytes" if said.get("load_in_4bit") or said.get("load_in_8bit") else None
        method = guess or ("compressed-tensors" if "config_groups" in said or "compression_config" in config else None)
    if method == "compressed-tensors":
        return CompressedCheckpoint(found, config)
    name, hint = _OTHERS.get(str(method), (f"{method!r}", _DEQUANTISE))
    raise Refused(
        f"is quantised: {name} (quant_method {method!r} in its config.json), which nett does not dequantise",
        where=found.path,
        hint=f"{hint} nett dequantises compressed-tensors and GGUF.",
    )


def _no_signs(found: Checkpoint) -> None:
    for name in found.tensors:
        for ending, method, called in _SIGNS:
            if name.endswith(ending):
                hint = _OTHERS[method][1] if method else "Name the folder, whose config.json says how it is packed."
                raise Refused(
                    f"holds the packed tensor {name!r} ({called}), and no config.json that says how to read it",
                    where=found.path,
                    hint=hint,
                )

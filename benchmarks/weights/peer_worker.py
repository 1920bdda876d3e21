"""llm-compressor on one model, in its own environment: METHOD MODEL IDS.npy OUT [BITS GROUP]. Needs nothing of nett.

Its documented defaults (dampening 0.01, static activation order, 20 grid points, one sample a batch); the scheme is
given in full, since its presets have groups of 128, which the model's 576 columns do not divide into.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def recipe(method: str, bits: int, group: int) -> list[Any]:
    """The modifiers that its documentation combines for a method."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    ignore = ["lm_head"]
    if method in ("sparsegpt", "wanda"):
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

        modifier = SparseGPTModifier if method == "sparsegpt" else WandaPruningModifier
        return [modifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"])]
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group)
    how = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        "ignore": ignore,
    }
    if method == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return [GPTQModifier(**how)]
    from llmcompressor.modifiers.quantization import QuantizationModifier

    if method == "rtn":
        return [QuantizationModifier(**how)]
    import torch
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if not torch.accelerator.is_available():  # its AWQ pins memory for an accelerator, and fails where there is none
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]
    return [AWQModifier(), QuantizationModifier(**how)]


def main() -> None:
    method, model, ids, out, *more = sys.argv[1:]
    import numpy as np
    from datasets import Dataset
    from llmcompressor import oneshot

    windows = np.load(ids)
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()})
    bits, group = (int(n) for n in more) if more else (16, 0)
    calibrated = {} if method == "rtn" else {
        "dataset": data,
        "num_calibration_samples": len(windows),
        "max_seq_length": int(windows.shape[1]),
        "shuffle_calibration_samples": False,
    }  # fmt: skip
    oneshot(model=model, recipe=recipe(method, bits, group), output_dir=out, **calibrated)
    if not any(Path(out).glob("*.safetensors")):
        raise SystemExit(f"{method} wrote nothing to {out}")


if __name__ == "__main__":
    main()

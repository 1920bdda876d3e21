"""Write mergekit-0.1.5.json: what mergekit makes of the recipes in support.mergekit, with the models they name.

python tests/merge/record_mergekit.py PATH/TO/bin/mergekit-yaml [--new]

--new keeps what is stored of recipes that are still the same.

The executable is of an environment of its own with mergekit 0.1.5 and torch 2.13.0; nothing of mergekit is stored but
its results.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from nett.core.checkpoint.safetensors import SafetensorsCheckpoint
from support.mergekit import CASES, read, run_mergekit, write_models

SMALL = {"layers": 4, "hidden": 4, "vocab": 16, "inter": 6, "heads": 2, "kv_heads": 1}


def packed(folder: Path) -> dict[str, Any]:
    tensors, types = read(folder)
    return {
        n: {"dtype": types[n], "shape": list(t.shape), "float32": base64.b64encode(t.astype("<f4").tobytes()).decode()}
        for n, t in tensors.items()
    }


def packed_model(folder: Path) -> dict[str, Any]:
    """Tensors of a model or of an adapter, which comes with its config."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return packed(folder)
    with SafetensorsCheckpoint(folder, [folder / "adapter_model.safetensors"]) as found:
        tensors = {n: np.array(found.values(n)).reshape(t.shape) for n, t in found.tensors.items()}
    return {"adapter_config": json.loads(file.read_text())} | {
        n: {"dtype": "F32", "shape": list(t.shape), "float32": base64.b64encode(t.astype("<f4").tobytes()).decode()}
        for n, t in tensors.items()
    }


def main(executable: str, only_new: str = "") -> None:
    target = Path(__file__).with_name("mergekit-0.1.5.json")
    before = json.loads(target.read_text(encoding="utf-8"))["cases"] if only_new else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_models(folder / "models", SMALL)
        found: dict[str, Any] = {
            "made by": "tests/merge/record_mergekit.py with mergekit 0.1.5, torch 2.13.0, on a CPU",
            "models": {m.name: packed_model(m) for m in sorted(models.iterdir())},
            "cases": {},
        }
        for number, (case, recipe) in enumerate(CASES.items()):
            if before.get(case, {}).get("recipe") == json.loads(json.dumps(recipe)):
                found["cases"][case] = before[case]
                continue
            out = run_mergekit(executable, models, recipe, folder / f"out{number}")
            found["cases"][case] = {"recipe": recipe, "result": packed(out)}
            print(case, flush=True)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

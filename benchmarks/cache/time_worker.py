"""kvpress' wall time on one prompt, in its own environment: REQUEST.json. Needs nothing of nett.

Prints a line of JSON for every measurement: name, seconds of the prompt, seconds of the tokens that follow one by one.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    import kvpress as k
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    ids, context = torch.from_numpy(np.load(asked["ids"])), int(asked["context"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    gone = 1 - float(asked["share"])
    ways: dict[str, Any] = {
        "full": None,
        "knorm": k.KnormPress(gone),
        "window": k.StreamingLLMPress(gone),
        "snapkv": k.SnapKVPress(gone, window_size=32),
        "expected_attention": k.ExpectedAttentionPress(gone),
    }
    for turn in range(int(asked["rounds"])):
        for name, press in list(ways.items())[:: 1 if turn % 2 else -1]:
            cache = DynamicCache()
            with torch.no_grad():
                began = time.perf_counter()
                with press(model) if press is not None else nullcontext():
                    model(ids[:, :context], past_key_values=cache, logits_to_keep=1)
                prompt = time.perf_counter() - began
                began = time.perf_counter()
                for at in range(context, ids.shape[1]):
                    where = torch.full((1, 1), at)
                    model(ids[:, at : at + 1], past_key_values=cache, position_ids=where)
                follow = time.perf_counter() - began
            print(json.dumps({"name": name, "prompt": prompt, "follow": follow}), flush=True)


if __name__ == "__main__":
    main()

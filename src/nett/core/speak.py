"""Run as ``python -m nett.core.speak``: load models one after the other, measure perplexity, let them continue.

A process of its own, because a model that does not fit or crashes must not take the merge with it.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

TEXT = """The sun had not yet risen when the two of them set out. The road was dry, and the dust that their steps
raised hung in the cool air behind them. "We should reach the river before noon," said the older one, who had
walked this way many times. The other nodded, and thought of the letter in his pocket. He had read it so often that
he knew every word. It said that the house was to be sold, that the bank would wait no longer, and that nobody but
his brother could still change anything. Water is a compound of hydrogen and oxygen. It boils at one hundred
degrees at sea level, and at a lower temperature in the mountains, because the pressure of the air is lower there.
"""
PROMPT = "The sun had not yet risen when"


def measure(path: str, text: str) -> dict[str, Any]:
    """Perplexity on ``text`` and a greedy continuation of a prompt, or why there is none."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    row: dict[str, Any] = {"model": Path(path).name, "path": path}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # whatever transformers throws is the finding
        return row | {"error": f"{type(error).__name__}: {error}"[:400]}
    lost = [k for k in info.get("missing_keys", []) if "rotary" not in k]
    if lost or info.get("unexpected_keys") or info.get("mismatched_keys"):
        row["problem"] = f"missing {sorted(lost)[:3]}, unexpected {sorted(info.get('unexpected_keys', []))[:3]}"
    model.eval()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss) if ids.shape[1] > 1 else math.nan
        prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
        said = model.generate(
            prompt, max_new_tokens=16, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(prompt)
        )
    row["perplexity"] = math.exp(min(loss, 80.0)) if loss == loss else math.nan
    row["says"] = tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
    row["tokens"] = int(ids.shape[1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--text")
    given = parser.parse_args()
    text = Path(given.text).read_text(encoding="utf-8") if given.text else TEXT
    warnings.simplefilter("ignore")
    rows = [measure(path, text) for path in given.models]
    Path(given.out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

"""Write mergekit-tokens-0.1.5.json: what mergekit makes of the recipes in support.mergekit_tokens.

python tests/merge/record_mergekit_tokens.py PATH/TO/bin/mergekit-yaml

As record_mergekit.py beside it. Ids of tokens that are added differ from run to run there, so what is stored is read
by token. Only cases that are not stored yet, or whose recipe has changed, are asked for.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merge.record_mergekit import packed
from support.mergekit import run_mergekit
from support.mergekit_tokens import CASES, write_models
from support.vocabularies import vocabulary_of

STORED = Path(__file__).with_name("mergekit-tokens-0.1.5.json")


def texts(folder: Path) -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def main(executable: str) -> None:
    before = json.loads(STORED.read_text()) if STORED.is_file() else {"cases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_models(folder / "models")
        made = {
            m.name: {"files": texts(m)} | ({"tensors": packed(m)} if (m / "config.json").is_file() else {})
            for m in sorted(models.iterdir())
        }
        kept = before["cases"] if before.get("models") == made else {}
        found: dict[str, Any] = {
            "made by": "tests/merge/record_mergekit_tokens.py with mergekit 0.1.5, torch 2.13.0, on a CPU",
            "models": made,
            "cases": {},
        }
        for number, (case, recipe) in enumerate(CASES.items()):
            plain = json.loads(json.dumps(recipe))
            if kept.get(case, {}).get("recipe") == plain:
                found["cases"][case] = kept[case]
                continue
            out = run_mergekit(executable, models, recipe, folder / f"out{number}")
            config = json.loads((out / "config.json").read_text())
            found["cases"][case] = {
                "recipe": plain,
                "vocabulary": vocabulary_of(out),
                "vocab_size": config["vocab_size"],
                "result": packed(out),
            }
            print(case, flush=True)
            STORED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

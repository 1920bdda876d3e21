"""Looking at a written model before anyone relies on it: does its config fit its tensors, and can it speak?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.json_text import text_part
from nett.core.match import layer_number

Check = dict[str, Any]
GARBAGE = 10.0  # a result whose perplexity is so many times that of its worst input talks garbage


def check_config(checkpoint: Checkpoint) -> list[Check]:
    """Vocabulary against embedding rows, layers and hidden size against shapes. Nothing to check without a config."""
    config = checkpoint.config()
    if config is None:
        return []
    text = text_part(config)
    checks = []
    embedding = next((t for n, t in checkpoint.tensors.items() if n.endswith("embed_tokens.weight")), None)
    if embedding is not None and len(embedding.shape) == 2:
        for key, size in (("vocab_size", embedding.shape[0]), ("hidden_size", embedding.shape[1])):
            if isinstance(text.get(key), int):
                ok = text[key] == size
                checks.append(
                    {
                        "name": f"config {key}",
                        "ok": ok,
                        "detail": f"config says {text[key]}, {embedding.name} has {size}",
                    }
                )
        tokens = tokenizer_size(checkpoint.folder)
        if tokens is not None:
            checks.append(
                {
                    "name": "tokenizer",
                    "ok": tokens <= embedding.shape[0],
                    "detail": f"{tokens} tokens, {embedding.shape[0]} embedding rows",
                }
            )
    layers = {n for name in checkpoint.tensors if (n := layer_number(name)) is not None}
    if layers and isinstance(text.get("num_hidden_layers"), int):
        ok = len(layers) == text["num_hidden_layers"]
        detail = f"config says {text['num_hidden_layers']}, the tensors have {len(layers)}"
        checks.append({"name": "config num_hidden_layers", "ok": ok, "detail": detail})
    return checks


def tokenizer_size(folder: Path) -> int | None:
    """One more than the largest token id of ``tokenizer.json``; None where there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [t["id"] for t in content.get("added_tokens", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return max(ids) + 1 if ids and all(type(i) is int for i in ids) else None


def speak(
    model: Path, inputs: Sequence[Path], *, text: str | None = None
) -> tuple[list[Check], list[Mapping[str, Any]]]:
    """Load the written model in a process of its own, let it say something, and compare its perplexity on a short
    text with that of its inputs. Says why where it cannot be done."""

    def skipped(why: str) -> tuple[list[Check], list[Mapping[str, Any]]]:
        return [{"name": "speaks", "ok": True, "detail": f"not tried: {why}"}], []

    if not (model / "config.json").is_file():
        return skipped("the output has no config.json")
    if not (model / "tokenizer.json").is_file() and not any(model.glob("*.model")):
        return skipped("the output has no tokenizer")
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        return skipped("torch and transformers are not installed (pip install 'nett[models]')")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    need = 2 * open_checkpoint(model).nbytes
    if need > free:
        return skipped(f"it needs about {need:,} bytes of memory, {free:,} are free")
    asked = [str(p) for p in (model, *inputs)]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "nett.core.speak", "--out", str(answer), *asked]
        if text is not None:
            (Path(folder) / "text.txt").write_text(text, encoding="utf-8")
            command += ["--text", str(Path(folder) / "text.txt")]
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not answer.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return [{"name": "loads", "ok": False, "detail": f"transformers cannot load it: {last[:400]}"}], []
        rows: list[Mapping[str, Any]] = json.loads(answer.read_text())
    return judge(rows), rows


def judge(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """The first row is the result, the others its inputs."""
    first, others = rows[0], [r for r in rows[1:] if r.get("perplexity") is not None]
    if first.get("error"):
        return [{"name": "loads", "ok": False, "detail": first["error"]}]
    checks: list[Check] = []
    if first.get("problem"):
        checks.append({"name": "loads", "ok": False, "detail": first["problem"]})
    perplexity = first["perplexity"]
    worst = max((r["perplexity"] for r in others), default=None)
    ok = perplexity == perplexity and (worst is None or perplexity <= GARBAGE * worst)
    detail = f"perplexity {perplexity:.4g}" + (f", worst input {worst:.4g}" if worst is not None else "")
    checks.append({"name": "speaks", "ok": ok, "detail": detail + f"; says: {first['says']!r}"})
    return checks

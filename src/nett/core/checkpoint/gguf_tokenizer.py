"""The tokenizer inside a GGUF file as the files of a Hugging Face folder: transformers' own conversion, saved."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path


def tokenizer_files(path: Path, tokens: int) -> tuple[dict[str, bytes], str | None]:
    """Name -> content (tokenizer.json, its settings, the chat template); or none, and why. ``tokens``: how many the
    file has; more than that there must not be, since the model has no rows for them."""
    try:
        import transformers
    except ImportError:
        return {}, "transformers, which converts its tokenizer, is not installed (pip install 'nett[models]')"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # transformers' own
                made = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
                made.save_pretrained(folder)
        except Exception as error:
            # Whatever transformers makes of a vocabulary it does not know; the weights are not touched by that.
            first = (str(error).splitlines() or [""])[0][:200]
            return {}, f"transformers cannot convert its tokenizer: {type(error).__name__}: {first}"
        found = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    return _without_invented(found, tokens), None


def _without_invented(files: dict[str, bytes], tokens: int) -> dict[str, bytes]:
    """transformers adds GPT-2's end of text to byte-pair vocabularies that lack it, with an id past the last row."""
    content = json.loads(files.get("tokenizer.json", b"{}"))
    added = content.get("added_tokens", [])
    invented = {t["content"] for t in added if t["id"] >= tokens}
    if not invented:
        return files
    content["added_tokens"] = [t for t in added if t["id"] < tokens]
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    settings = {k: v for k, v in settings.items() if not (isinstance(v, str) and v in invented)}
    return files | {
        "tokenizer.json": _json(content),
        "tokenizer_config.json": _json(settings),
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

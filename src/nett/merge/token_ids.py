"""Token ids in config.json and generation_config.json, after tokens have got other ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nett.merge.tokenizer_files import TokenizerFiles

_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def with_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """``vocab_size`` wherever the config says one for the language model."""
    made = dict(config)
    if isinstance(made.get("text_config"), dict):
        made["text_config"] = with_size(made["text_config"], rows)
        if "vocab_size" not in made:
            return made
    return made | {"vocab_size": rows}


def with_ids(before: TokenizerFiles, after: TokenizerFiles) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that moves the ids of a config: each names the token that it named.

    A token that is no more is replaced by the one that the new tokenizer has in its role (``eos_token`` for
    ``eos_token_id``), and by nothing where it has none. Ids that name no token stay: they may be of images or of rows
    that are kept.
    """
    texts = {number: token for token, number in before.vocab.items()}

    def moved(number: Any, role: str) -> Any:
        if type(number) is not int or number not in texts:
            return number
        token = texts[number] if texts[number] in after.vocab else after.role(role)
        return after.vocab.get(token) if token is not None else None

    def one(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: one(k, v) for k, v in value.items()}
        if not key.endswith(("_token_id", "_token_ids")) and key not in _LISTS:
            return value
        role = key.removesuffix("s").removesuffix("_id")
        if isinstance(value, list):
            return list(dict.fromkeys(n for v in value if (n := moved(v, role)) is not None))
        return moved(value, role)

    return lambda config: {key: one(key, value) for key, value in config.items()}

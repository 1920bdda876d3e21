"""The output's tokenizer: one model's, or one model's with the tokens that others have beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nett.core.errors import Refused
from nett.merge.tokenizer_files import TokenizerFiles, loaded, written


def with_tokens(tokenizer: TokenizerFiles, tokens: Sequence[Any]) -> TokenizerFiles:
    """The same with ``tokens`` (text, or AddedToken) at the end, as far as it does not have them so already.

    Refused where the library would give a new token an id that another has.
    """
    if not tokens:
        return tokenizer
    before = tokenizer.fast.to_str()
    fast = loaded(before.encode(), tokenizer.where)  # so that the other stays what it is
    fast.add_tokens(list(tokens))
    if fast.to_str() == before:
        return tokenizer
    vocab = fast.get_vocab(with_added_tokens=True)
    if len(set(vocab.values())) < len(vocab):
        raise Refused(
            "has ids that stand for no token among those that do, so tokens cannot be added to it",
            where=tokenizer.where,
            hint="Give the ids without a token one in its tokenizer.json, or take the tokenizer of another model.",
        )
    return TokenizerFiles(tokenizer.where, written(tokenizer.files, fast), fast, vocab)


def union(
    ground: TokenizerFiles, others: Sequence[tuple[str, TokenizerFiles, int]]
) -> tuple[TokenizerFiles, list[str]]:
    """``ground`` with what ``others`` (name, tokenizer, rows of the model) have beside it, and what to tell about it.

    As in mergekit: first the tokens of their models, by model and id, to be matched as they stand; then their added
    tokens with their flags. Of several flags for one token the first count, the ground's before all. Tokens without a
    row are left out.
    """
    plain: dict[str, None] = {}
    added: dict[str, Any] = {token.content: token for token in ground.added().values()}
    notes = []
    for name, tokenizer, rows in others:
        own = {number: token for number, token in tokenizer.added().items() if number < rows}
        contents = {token.content for token in own.values()}
        for text, number in sorted(tokenizer.vocab.items(), key=lambda p: p[1]):
            if number < rows and text not in contents and text not in ground.vocab:
                plain.setdefault(text)
        differ = [t for t in own.values() if t.content in added and _flags(added[t.content]) != _flags(t)]
        promoted = [t for t in own.values() if t.content not in added and t.content in ground.vocab]
        for tokens, what in (
            (differ, "are marked otherwise (special, stripped, normalised) there than before: the first marks count"),
            (promoted, "are matched as a whole from now on, as there: the base has them as plain tokens"),
        ):
            if tokens:
                notes.append(f"{len(tokens)} added token(s) of {name} {what}: {_some([t.content for t in tokens])}")
        for token in own.values():
            added.setdefault(token.content, token)
    new = [text for text in plain if text not in added]
    known = {token.content for token in ground.added().values()}
    return with_tokens(ground, [*new, *(t for text, t in added.items() if text not in known)]), notes


def _flags(token: Any) -> tuple[bool, ...]:
    return (token.special, token.normalized, token.lstrip, token.rstrip, token.single_word)


def _some(texts: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(t) for t in texts[:most])
    return shown + (f" and {len(texts) - most:,} more" if len(texts) > most else "")

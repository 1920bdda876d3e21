"""A recipe's rules for single tokens, looked up in the models: which row of which, or zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nett.core.errors import UsageError
from nett.merge.recipe_file import Recipe
from nett.merge.recipe_parts import Source
from nett.merge.recipe_tokens import TokenizerRule, TokenRule
from nett.merge.token_models import TokenModel


def row_rules(
    found: Sequence[TokenModel], recipe: Recipe, rule: TokenizerRule
) -> tuple[dict[str, tuple[int, int] | None], list[str], list[str]]:
    """The recipe's sources of single tokens as (model, row), None for zeros; those that are forced; notes."""
    explicit: dict[str, tuple[int, int] | None] = {}
    forced, notes = [], []
    for token, said in rule.tokens.items():
        where = recipe.at(said.place)
        if said.kind is None:
            if said.force:
                raise UsageError(f"the token {token!r} is forced, but no source says to what", where=where,
                                 hint="Add 'source: MODEL' or 'source: {kind: zero}' to it.")  # fmt: skip
            continue
        explicit[token] = None if said.kind == "zero" else _row(found, token, said, where)
        if said.force:
            forced.append(token)
        elif all(m.known.row(token) >= 0 for m in found):
            line = recipe.document.line(said.place)
            notes.append(
                f"the source of {token!r} (line {line}) has no effect: all models have it, and force is not set"
            )
    return explicit, forced, notes


def _row(found: Sequence[TokenModel], token: str, said: TokenRule, where: str) -> tuple[int, int]:
    wanted = Source(said.model or "", said.place, None).key
    index = next((i for i, m in enumerate(found) if m.source.key == wanted), None)
    if index is None:
        known = ", ".join(m.name for m in found)
        raise UsageError(
            f"the token {token!r} is to come from {said.model!r}, which is not one of the models merged here",
            where=where,
            hint=f"Its row must be one of theirs: {known}.",
        )
    model = found[index]
    if said.token_id is not None:
        if said.token_id >= model.rows:
            raise UsageError(
                f"token_id = {said.token_id} is no row of {model.name}: 0 <= token_id < {model.rows}",
                where=where,
            )
        return index, said.token_id
    text = said.token if said.token is not None else token
    vocab, row = model.tokenizer.vocab, model.known.row(text)
    if row < 0:
        what = f"{model.name} has no token {text!r}" if text not in vocab else (
            f"{model.name} has the token {text!r} (id {vocab[text]}), but only {model.rows} rows"
        )  # fmt: skip
        raise UsageError(what, where=where, hint=_nearest(text, vocab))
    return index, row


def _nearest(token: str, vocab: Mapping[str, int]) -> str | None:
    import difflib

    bare = token.strip("▁Ġ <>|[]").lower()
    near = [t for t in vocab if abs(len(t) - len(token)) <= 3 and (bare[:2] in t.lower() or bare[-2:] in t.lower())]
    best = difflib.get_close_matches(token, near, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(t) for t in best)}?" if best else None

"""What a recipe says of the tokenizer: ``tokenizer_source``, or ``tokenizer`` with a source for single tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from nett.core.errors import UsageError, did_you_mean
from nett.core.yaml_file import Document, Place
from nett.merge.recipe_schema import REFERENCE, model_place, wrong

WORDS = ("union", "base")


@final
@dataclass(frozen=True)
class TokenRule:
    """Where one token's row comes from: ``zero``, a ``model``'s row of that token, or of another ``token`` or
    ``token_id``; none of them where nothing is said. ``force``: also in models that have the token."""

    place: Place
    kind: Literal["zero", "model", "model_token"] | None = None
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@final
@dataclass(frozen=True)
class TokenizerRule:
    """``source``: union, base, or the path of a tokenizer."""

    source: str
    place: Place
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


def tokenizer_rule(plain: Mapping[str, Any], document: Document, key: str) -> TokenizerRule | None:
    """The rule of a checked recipe, or None where it has none."""
    source, whole = plain.get("tokenizer_source"), plain.get("tokenizer")
    if source is not None and whole is not None:
        raise UsageError(
            "'tokenizer_source' and 'tokenizer' are two ways to say one thing; a recipe may have one of them",
            where=f"{document.at(('tokenizer_source',))} {key}",
            hint="Move the source into it: tokenizer: {source: …}",
        )
    if whole is None:
        return TokenizerRule(source, ("tokenizer_source",)) if source is not None else None
    place: Place = ("tokenizer",)
    rules = {}
    for token, given in (whole.get("tokens") or {}).items():
        said = given or {}
        rules[token] = TokenRule(
            (*place, "tokens", token), force=said.get("force", False), **(said.get("source") or {})
        )
    return TokenizerRule(
        whole.get("source") or "union",
        (*place, "source") if whole.get("source") else place,
        rules,
        whole.get("pad_to_multiple_of"),
    )


def _near(word: str, known: Iterable[str]) -> str:
    near = did_you_mean(word, known)
    return near if "Did" in near else ""


_KINDS = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}


def _token_source(value: Any, info: Any) -> dict[str, Any]:
    """A token's source as the fields of :class:`TokenRule`."""
    if not isinstance(value, dict) or "kind" not in value:
        return {"kind": "model", "model": model_place(value, info)}
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise wrong(f"kind = {kind!r} is not one of zero, model_token.{_near(str(kind), _KINDS)}")
    for key in value:
        if key not in _KINDS[kind]:
            raise wrong(
                f"unknown key {key!r} in a source of kind {kind}.{_near(key, _KINDS[kind])} Known: "
                + ", ".join(_KINDS[kind])
            )
    if kind == "zero":
        return {"kind": "zero"}
    token, number = value.get("token"), value.get("token_id")
    if value.get("model") is None:
        raise wrong("a source of kind model_token needs the model whose token it is ('model')")
    if (token is None) == (number is None):
        raise wrong("a source of kind model_token needs one of 'token' and 'token_id', not both")
    if number is not None and (type(number) is not int or number < 0):
        raise wrong(f"token_id = {number!r} is not the number of a token, 0 or more")
    if token is not None and not isinstance(token, str):
        raise wrong(f"token = {token!r} is not a text; put it in quotes")
    return {"kind": kind, "model": model_place(value["model"], info), "token": token, "token_id": number}


def _one_of_two(key: str, kind: Mapping[str, Any]) -> dict[str, Any]:
    properties = {"kind": {"const": "model_token"}, "model": REFERENCE, key: kind}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_SOURCE = {
    "description": "A model that is merged, zeros, or the row of a token of a model.",
    "anyOf": [
        REFERENCE,
        {
            "type": "object",
            "properties": {"kind": {"const": "zero"}},
            "required": ["kind"],
            "additionalProperties": False,
        },
        _one_of_two("token", {"type": "string"}),
        _one_of_two("token_id", {"type": "integer", "minimum": 0}),
    ],
}


def _whole(value: Any) -> Any:
    if type(value) is not int or value < 1:
        raise wrong(f"pad_to_multiple_of = {value!r} is not a whole number of 1 or more")
    return value


def _truth(value: Any) -> Any:
    if not isinstance(value, bool):
        raise wrong(f"force = {value!r} is not true or false")
    return value


@final
class RecipeToken(BaseModel):
    """Where one token's row comes from."""

    model_config = ConfigDict(extra="forbid")
    source: Annotated[Any, BeforeValidator(_token_source), WithJsonSchema(_SOURCE)] | None = None
    force: Annotated[bool, BeforeValidator(_truth)] = Field(False, description="Also in models that have the token.")


def _tokenizer_source(value: Any, info: Any) -> str:
    if value in WORDS:
        return str(value)
    place = model_place(value, info)
    if isinstance(value, str) and (near := _near(value, WORDS)) and not os.path.exists(place):
        raise wrong(f"{value!r} is neither union nor base, nor a path that exists.{near}")
    return place


TokenizerSource = Annotated[
    str,
    BeforeValidator(_tokenizer_source),
    WithJsonSchema(REFERENCE | {"description": "union, base, or the folder of a tokenizer."}),
]


@final
class RecipeTokenizer(BaseModel):
    """The output's tokenizer, and the rows of tokens that not all models have."""

    model_config = ConfigDict(extra="forbid")
    source: TokenizerSource | None = None
    tokens: dict[str, Annotated[RecipeToken, BeforeValidator(lambda v: {} if v is None else v)]] | None = None
    pad_to_multiple_of: (
        Annotated[int, BeforeValidator(_whole), WithJsonSchema({"type": "integer", "minimum": 1})] | None
    ) = Field(None, description="Rows are added, each the mean of all others, until their number is a multiple.")

"""The shape of recipes, made from the cards: one pydantic model a method, and the JSON schema of them all."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cache, reduce
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union

from annotated_types import MinLen
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from nett.core.errors import UsageError
from nett.merge.recipe_words import Vocabulary, Word, recipe_cards, vocabulary

OWN = "nett"  # type of the errors whose message is already ours
DTYPES = ("bfloat16", "float16", "float32", "float64")
_NUMERIC = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"
_STRICT = ConfigDict(extra="forbid")


def wrong(what: str) -> PydanticCustomError:
    return PydanticCustomError(OWN, "{what}", {"what": what})


def model_reference(value: Any) -> str:
    """A model as text: the mapping form ``{model: …, lora: …}`` becomes ``model+lora``."""

    def path_of(part: Any) -> str:
        if isinstance(part, dict):
            for key in part:
                if key not in ("path", "revision"):
                    raise wrong(f"unknown key {key!r} in a model; known: path, revision")
            revision = part.get("revision")
            if revision is not None and (not isinstance(revision, str) or not revision):
                raise wrong(f"revision = {revision!r} is not the name of a branch, a tag or a commit")
            path = part.get("path")
            part = f"{path}@{revision}" if revision is not None and isinstance(path, str) else path
        if not isinstance(part, str) or not part:
            raise wrong(f"{part!r} is not the path of a model")
        return part

    if isinstance(value, dict) and "model" in value:
        for key, part in value.items():
            if key == "override_architecture" and part is not None:
                raise wrong(
                    f"override_architecture = {part!r} has no meaning here, since nett goes by tensor names: leave it out"
                )
            if key not in ("model", "lora", "override_architecture"):
                raise wrong(f"unknown key {key!r} in a model; known: model, lora")
        return "+".join(path_of(value[key]) for key in ("model", "lora") if value.get(key) is not None)
    return path_of(value)


def model_place(value: Any, info: Any) -> str:
    """:func:`model_reference`, or the place where that lay if the validation's context (a pydantic ValidationInfo)
    knows it."""
    reference = model_reference(value)
    return str((info.context or {}).get(reference, reference))


_PATH = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"path": {"type": "string", "minLength": 1}, "revision": {"type": ["string", "null"]}},
            "required": ["path"],
            "additionalProperties": False,
        },
    ]
}
REFERENCE = {
    "description": "Folder or file of a model, or ORG/NAME in the local cache; PATH@REVISION; BASE+ADAPTER applies "
    "a PEFT adapter.",
    "anyOf": [
        *_PATH["anyOf"],
        {
            "type": "object",
            "properties": {
                "model": _PATH,
                "lora": {"anyOf": [*_PATH["anyOf"], {"type": "null"}]},
                "override_architecture": {"type": "null"},
            },
            "required": ["model"],
            "additionalProperties": False,
        },
    ],
}
Reference = Annotated[str, BeforeValidator(model_place), WithJsonSchema(REFERENCE)]
LayerRange = Annotated[
    list[Annotated[int, Field(strict=True)]],
    Field(min_length=2, max_length=2, description="[FROM, TO): layers by number, TO is one past the last."),
]
ElementType = Literal[tuple(prefix + d for d in DTYPES for prefix in ("", "torch."))]  # type: ignore[valid-type]


def _scalar_schema(word: Word) -> dict[str, Any]:
    shown = word.shown
    if shown.choices:
        return {"enum": list(shown.choices)}
    if shown.type == "bool":
        return {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false", "yes", "no", "1", "0", 1, 0]}]}
    number: dict[str, Any] = {"type": "integer" if shown.type == "int" else "number"}
    for bound, key, opened, open_key in (
        (shown.low, "minimum", shown.open_low, "exclusiveMinimum"),
        (shown.high, "maximum", shown.open_high, "exclusiveMaximum"),
    ):
        if bound is not None:
            number[open_key if opened else key] = bound
    return {"anyOf": [number, {"type": "string", "pattern": _NUMERIC}]}


def _shape(value: Any) -> str:
    """Which of the four forms of a parameter's value this is; the tags begin with : so that no key equals one."""
    if isinstance(value, dict | BaseModel):
        return ":condition"
    if isinstance(value, list):
        return ":conditions" if any(isinstance(v, dict | BaseModel) for v in value) else ":gradient"
    return ":value"


def _setting(scalar: Any, title: str) -> Any:
    """A value, a gradient over the layers, or one or more conditions on the tensor's name."""
    gradient = list[scalar]
    plain = Annotated[
        Union[Annotated[scalar, Tag(":value")], Annotated[gradient, Tag(":gradient")]],  # noqa: UP007
        Discriminator(_shape),
    ]
    condition: Any = create_model(
        f"{title}Condition", __config__=_STRICT, filter=(str | None, None), value=(plain, ...)
    )
    conditions = Annotated[list[condition], MinLen(1)]
    return Annotated[
        Union[  # noqa: UP007
            Annotated[scalar, Tag(":value")],
            Annotated[gradient, Tag(":gradient")],
            Annotated[condition, Tag(":condition")],
            Annotated[conditions, Tag(":conditions")],
        ],
        Discriminator(_shape),
    ]


def _field(word: Word, title: str) -> Any:
    def checked(value: Any) -> Any:
        try:
            return word.check(value)
        except UsageError as error:
            raise wrong(error.what) from error

    scalar = Annotated[Any, BeforeValidator(checked), WithJsonSchema(_scalar_schema(word))]
    return Annotated[_setting(scalar, title + word.name.title()), Field(description=word.shown.description)]


def _parameters(words: Vocabulary, *, each_only: bool) -> type[BaseModel]:
    title = "".join(part.title() for part in words.card.name.split("_"))
    # Field names are made up, since a parameter may be called `lambda`; the aliases are the recipe's words.
    fields: dict[str, Any] = {}

    def add(name: str, kind: Any) -> None:
        fields[f"p{len(fields)}"] = (kind, Field(None, alias=name))

    for word in words.each if each_only else words.words.values():
        add(word.name, _field(word, title))
    for name in words.ignored:
        add(name, _setting(bool | int | float | str, title + name.title()))
    for name, value in () if each_only else words.only.items():
        add(name, Literal[value])
    title += "ModelParameters" if each_only else "Parameters"
    return create_model(title, __config__=_STRICT, **fields)


def _title(words: Vocabulary) -> str:
    return "".join(part.title() for part in words.card.name.split("_"))


def _contents(words: Vocabulary, shared: Any) -> dict[str, Any]:
    """``models`` and ``slices``, which stand at the top or in a module."""
    title = _title(words)
    each: Any = (_parameters(words, each_only=True) | None, None)
    model: Any = create_model(f"{title}Model", __config__=_STRICT, model=(Reference, ...), parameters=each)
    source: Any = create_model(
        f"{title}Source",
        __config__=_STRICT,
        model=(Reference, ...),
        layer_range=(LayerRange, ...),
        parameters=each,
    )
    one: Any = create_model(
        f"{title}Slice",
        __config__=_STRICT,
        sources=(Annotated[list[source], MinLen(1)], ...),
        base_model=(Reference | None, None),
        residual_weight=(float | None, None),
        parameters=shared,
    )
    return {
        "models": (Annotated[list[model], MinLen(1)] | None, None),
        "slices": (Annotated[list[one], MinLen(1)] | None, None),
    }


@cache
def recipe_model(name: str) -> type[BaseModel]:
    """The pydantic model of the recipes of one method; keys that it does not name are forbidden."""
    from nett.merge.recipe_tokens import RecipeTokenizer, TokenizerSource

    card = recipe_cards()[name]
    words = vocabulary(card)
    shared: Any = (_parameters(words, each_only=False) | None, None)
    contents = _contents(words, shared)
    module: Any = create_model(
        f"{_title(words)}Module", __config__=_one_of(("models", "slices")), **contents, parameters=shared
    )
    spellings = tuple(dict.fromkeys((card.name, card.name.replace("_", "-"))))
    fields: dict[str, Any] = {
        "merge_method": (Literal[spellings], ...),
        **contents,
        "modules": (Annotated[dict[str, module], MinLen(1)] | None, None),
        "base_model": (Reference, ...) if "base" in card.needs else (Reference | None, None),
        "dtype": (ElementType | None, None),
        "out_dtype": (ElementType | None, None),
        "name": (Annotated[str, Field(strict=True, min_length=1)] | None, None),
        "chat_template": (Annotated[str, Field(strict=True, min_length=1)] | None, None),
        "tokenizer_source": (TokenizerSource | None, None),
        "tokenizer": (RecipeTokenizer | None, None),
        "parameters": shared,
    }
    holders = {"patternProperties": {"^x-": {"description": "What aliases stand for."}}}
    config = _one_of(("models", "slices", "modules"), holders) | ConfigDict(title=f"{card.title} recipe")
    return create_model(f"{_title(words)}Recipe", __config__=config, __doc__=card.summary, **fields)


def _one_of(keys: tuple[str, ...], more: Mapping[str, Any] = MappingProxyType({})) -> ConfigDict:
    """Nothing but what is named, and exactly one of ``keys`` (checked by hand, published in the schema)."""
    return ConfigDict(extra="forbid", json_schema_extra={"oneOf": [{"required": [k]} for k in keys], **more})


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of all recipes, told apart by ``merge_method``."""
    models: list[Any] = [recipe_model(name) for name in sorted(recipe_cards())]
    union: Any = Annotated[reduce(operator.or_, models), Field(discriminator="merge_method")]
    schema: dict[str, Any] = TypeAdapter(union).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nett merge recipe"} | schema

"""Reads the settings of a simulation, with the line of whatever is off."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, ValidationError

from nett.core.errors import UsageError, did_you_mean
from nett.core.yaml_file import Document, Place, read_documents
from nett.experts.duplex_dimensions import Dimensions, read_config
from nett.experts.duplex_settings import OWN, Settings

EXAMPLE = "model: …, hardware: …, requests: …"


@final
@dataclass(frozen=True)
class Setup:
    """Settings, the model's dimensions, the folder that paths are relative to, and what is not modelled."""

    settings: Settings
    model: Dimensions
    folder: Path
    notes: tuple[str, ...] = ()


def read_settings(file: Path) -> Setup:
    """A file's settings with the model's config read; UsageError with the file and the line at the first thing that is off."""
    documents = read_documents(file, EXAMPLE)
    if len(documents) > 1:
        raise UsageError(f"holds {len(documents)} documents, where one is expected", where=file)
    document = documents[0]
    try:
        settings = Settings.model_validate(_listed(document.data))
    except ValidationError as error:
        raise _said(error, document) from None
    if isinstance(settings.model, Dimensions):
        return Setup(settings, settings.model, file.parent)
    model, notes = read_config(file.parent / settings.model)
    return Setup(settings, model, file.parent, tuple(notes))


def _listed(data: Any) -> Any:
    """YAML's lists as the tuples that settings hold."""
    if isinstance(data, dict):
        return {k: _listed(v) for k, v in data.items()}
    return tuple(_listed(v) for v in data) if isinstance(data, list) else data


def _said(error: ValidationError, document: Document) -> UsageError:
    findings = [(_place(tuple(e["loc"]), document.data), e) for e in error.errors()]
    # of `model: PATH or dimensions`, the branch that was not meant complains as well
    kept = [f for f in findings if f[1]["type"] != "string_type" or isinstance(f[1]["input"], int | float)] or findings
    place, first = min(kept, key=lambda f: (f[1]["type"] == "missing", document.line(f[0])))
    shown = ".".join(str(p) for p in place)
    kind, value = first["type"], first["input"]
    hint = None
    if kind == "extra_forbidden":
        known = _keys(place[:-1])
        near = did_you_mean(str(place[-1]), known)
        what = f"unknown key {shown!r}.{near}"
        hint = f"Known here: {', '.join(known)}." if "Did" in near else None
    elif kind == "missing":
        what = f"{shown!r} is missing"
        hint = (
            "model: the path of a config.json, or {layers: …, hidden: …, heads: …, …}" if place == ("model",) else None
        )
    elif kind == OWN:
        what = f"{shown}{first['ctx']['what']}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        what = f"{shown} = {value!r} is not a mapping of keys to values"
        hint = f"Known here: {', '.join(_keys(place))}."
    elif kind == "literal_error":
        near = did_you_mean(str(value), _choices(first))
        what = f"{shown} = {value!r} is not one of {', '.join(_choices(first))}.{near if 'Did' in near else ''}"
    elif kind == "value_error":
        what = f"{shown}: {first['ctx']['error']}"
    else:
        text = first["msg"][:1].lower() + first["msg"][1:]
        what = f"{shown} = {value!r}: {text}"
    return UsageError(what, where=document.at(place), hint=hint)


def _choices(error: Any) -> list[str]:
    return [w.strip(" '") for w in error["ctx"]["expected"].replace(" or ", ", ").split(",")]


def _place(loc: tuple[Any, ...], data: Any) -> Place:
    """pydantic's path without the names of a union's branches."""
    kept: list[str | int] = []
    for i, part in enumerate(loc):
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if not inside and i < len(loc) - 1:
            continue
        if not inside and str(part).startswith(("str", "Dimensions", "function-")):
            continue
        kept.append(part)
        data = data[part] if inside else None
    return tuple(kept)


def _keys(place: Place) -> list[str]:
    """What may stand in the mapping at ``place``."""
    model: Any = Settings
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        model = next(_models(field.annotation), None) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if typing.get_origin(annotation) is None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _models(inner)

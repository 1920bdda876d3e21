"""Registration is the only list: ``@method`` on a pure kernel, read back from the source as a :class:`Card`.

Cards are read with ``ast``, so listing and ``--help`` import no method and no torch. The arguments of ``@method``
are literals and the keyword-only parameters of the kernel are its whole configuration.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, final

from nett.core.errors import UsageError, did_you_mean

Kind = Literal["reduce", "train", "serve", "measure", "make"]
Grain = Literal["stream", "tensor", "block", "model", "corpus"]
View = Literal["flat", "rows", "whole"]
F = TypeVar("F", bound=Callable[..., Any])
_OF_MANY_SHAPES = {"symmetry", "weight", "weights", "model", "layers"}  # operands
ROOMS = (
    "merge", "store", "weights", "experts", "adapters", "cache", "tokens", "data", "lake", "code", "graphs",
    "search", "training", "diffusion", "scan",
)  # fmt: skip


@final
@dataclass(frozen=True)
class Between:
    """Bounds of a number, both included unless ``open_low``/``open_high``."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False


@final
@dataclass(frozen=True)
class Tunable:
    """The values that ``auto`` tries, with ``--eval`` to judge them."""

    grid: tuple[float, ...]


@final
@dataclass(frozen=True)
class With:
    """An engine's option that means something to methods with one of these operands only."""

    operands: tuple[str, ...]

    def __init__(self, *operands: str) -> None:
        object.__setattr__(self, "operands", operands)


@final
@dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter of a method, as its signature states it."""

    name: str
    type: str  # int, float, bool, str, path or choice
    default: Any
    description: str = ""
    many: bool = False  # one value, or one for each model
    optional: bool = False  # None is allowed
    required: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    grid: tuple[float, ...] = ()
    operands: tuple[str, ...] = ()  # of the methods that an engine's option means something to; all where empty

    @property
    def range(self) -> str:
        """``0 <= density <= 1`` or the choices; empty where anything goes."""
        if self.choices:
            return " | ".join(self.choices)
        low = "" if self.low is None else f"{self.low:g} {'<' if self.open_low else '<='} "
        high = "" if self.high is None else f" {'<' if self.open_high else '<='} {self.high:g}"
        return f"{low}{self.name}{high}" if low or high else ""

    def check(self, value: Any, where: str) -> Any:
        """``value`` as this parameter takes it, or a :class:`UsageError` naming the range."""
        if value is None and (self.optional or self.default is None):
            return None
        if self.many and isinstance(value, list | tuple):
            return [self._one(v, where) for v in value]
        if self.many and isinstance(value, str) and "," in value:
            return [self._one(v, where) for v in value.split(",")]
        return self._one(value, where)

    def _one(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and self.grid and value == "auto":
            return value
        if self.choices:
            word = str(value)
            for choice in self.choices:
                if word.replace("_", "-") == choice.replace("_", "-"):
                    return choice
            raise UsageError(
                f"{self.name} = {value!r} is not one of {', '.join(self.choices)}.{did_you_mean(word, self.choices)}",
                where=where,
            )
        try:
            made = self._cast(value)
        except (TypeError, ValueError, OverflowError) as error:
            kind = {"float": "a number", "int": "a whole number", "bool": "true or false"}.get(self.type, self.type)
            limits = f" ({self.range})" if self.range else ""
            raise UsageError(f"{self.name} = {value!r} is not {kind}{limits}", where=where) from error
        if isinstance(made, int | float) and not isinstance(made, bool) and not self._inside(made):
            expected = self.range or f"{self.name} must be a finite number"
            raise UsageError(f"{self.name} = {value!r} is out of range: {expected}", where=where)
        return made

    def _cast(self, value: Any) -> Any:
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            if str(value).lower() in words:
                return words[str(value).lower()]
            raise ValueError(value)
        if self.type == "float":
            if isinstance(value, bool):
                raise ValueError(value)
            return float(value)
        if self.type == "int":
            if isinstance(value, bool):
                raise ValueError(value)
            try:
                return int(str(value))  # not by way of float, which has no room for large seeds
            except ValueError:
                if float(value) != int(float(value)):
                    raise
                return int(float(value))
        return str(value)

    def _inside(self, value: float) -> bool:
        if value != value or value in (float("inf"), float("-inf")):
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return not (self.high is not None and (value > self.high or (self.open_high and value == self.high)))


@final
@dataclass(frozen=True)
class Card:
    """All that is known of a method without importing it."""

    room: str
    name: str
    module: str
    title: str
    papers: tuple[str, ...]
    kind: Kind
    grain: Grain
    guarantee: str
    summary: str
    parameters: tuple[Parameter, ...]
    operands: tuple[str, ...]  # positional parameters of the kernel
    needs: tuple[str, ...] = ()
    extra: str | None = None
    outputs: tuple[str, ...] = ("model",)
    restore: str | None = None
    command: bool = False  # takes the user's paths itself; no engine stands between
    mergekit: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, str] = field(default_factory=dict)  # of the docstring
    hidden: bool = False
    identity: Mapping[str, Any] | None = None  # parameters under which one input comes back unchanged
    symmetric: bool = False  # the order of the models is irrelevant
    rows: bool | Mapping[str, Any] = False  # a stream of rows, always or with these values of parameters
    carries: bool = False  # goes through the models one by one, and can go on from a state
    resizes: bool = False  # the result's tensors may have other shapes than the inputs'

    @property
    def key(self) -> str:
        return f"{self.room}/{self.name}"

    def view(self, parameters: Mapping[str, Any]) -> View:
        """What the kernel sees of a tensor at a time, with these parameters."""
        return view_of(self.grain, self.rows, parameters)

    def takes(self, option: Parameter) -> bool:
        """Whether an option of the room's engine means anything to this method."""
        if option.operands and not set(option.operands) & set(self.operands):
            return False
        return self._takes(option.name)

    def _takes(self, option: str) -> bool:
        if "symmetry" in self.operands:
            return option not in ("base", "threads", "eval", "state")
        return option not in ("net", "input", "data") and (self.carries or option != "state")

    def refuses(self, option: str) -> bool:
        """Whether an option of the room's engine is understood and refused with the reason, so that help hides it."""
        whole = "symmetry" not in self.operands and list(self.outputs) == ["model"] and not self.carries
        return option == "as_lora" and not whole

    def parameter(self, name: str) -> Parameter | None:
        bare = name.replace("-", "_")
        return next((p for p in self.parameters if p.name == bare), None)

    def resolve(self, given: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
        """Every parameter with its value: ``given`` checked, the rest by default. Unknown names are refused."""
        place = where or self.key
        names = [p.name for p in self.parameters]
        for name in given:
            if name.replace("-", "_") not in names:
                near = self._nearest(name)
                raise UsageError(
                    f"unknown parameter {name!r}.{near or did_you_mean(name, names)}",
                    where=place,
                    hint=f"See: nett show {self.key}",
                )
        bare = {name.replace("-", "_"): value for name, value in given.items()}
        resolved = {}
        for parameter in self.parameters:
            if parameter.name in bare:
                resolved[parameter.name] = parameter.check(bare[parameter.name], place)
            elif parameter.required:
                raise UsageError(f"the parameter {parameter.name!r} must be given", where=place)
            else:
                resolved[parameter.name] = parameter.default
        return resolved

    def _nearest(self, name: str) -> str | None:
        import difflib

        near = difflib.get_close_matches(name, [p.name for p in self.parameters], n=1, cutoff=0.6)
        found = self.parameter(near[0]) if near else None
        if found is None:
            return None
        about = f"{found.range}, default {found.default}" if found.range else f"default {found.default}"
        return f" Did you mean {found.name!r} ({about})?"

    def load(self) -> Callable[..., Any]:
        """The method itself, imported now."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        return found

    def kernel(self) -> Callable[..., Any]:
        """The bare kernel that the engine drives; the same as :meth:`load` where nothing is asked."""
        loaded = self.load()
        bare: Callable[..., Any] = getattr(loaded, "kernel", loaded)
        return bare

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Card:
        """The inverse of :meth:`as_json`, lists back to tuples."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
        values["parameters"] = tuple(
            Parameter(**p | {k: tuple(p[k]) for k in ("choices", "grid", "operands")}) for p in record["parameters"]
        )
        return cls(**values)


def method(
    *,
    papers: Sequence[str] = (),
    title: str,
    grain: Grain = "stream",
    guarantee: Literal["exact", "bounded", "measured"] = "measured",
    kind: Kind = "reduce",
    needs: Sequence[str] = (),
    extra: str | None = None,
    outputs: Sequence[str] = ("model",),
    restore: str | None = None,
    command: bool = False,
    mergekit: Mapping[str, Any] | None = None,
    hidden: bool = False,
    identity: Mapping[str, Any] | None = None,
    symmetric: bool = False,
    rows: bool | Mapping[str, Any] = False,
    carries: bool = False,
    resizes: bool = False,
) -> Callable[[F], F]:
    """Register a kernel. All arguments must be literals, since they are read without running the file.

    papers: ids of the catalogue. grain: what must be in memory at once. needs: operands without which the plan is
    refused. outputs: names of what the kernel returns when that is more than one model; ``name*`` is one a model.
    restore: the function of the same file that rebuilds an input from the outputs. command: the function takes the
    user's paths itself. mergekit: how recipes of that tool speak of this method.
    identity: parameters under which one input comes back unchanged. symmetric: the order of the models is irrelevant.
    rows: a kernel of grain ``stream`` sees rows, always or where a parameter has one of these values.
    carries: the kernel goes through the models one by one and asks for what it carries (:mod:`nett.core.carrying`).
    resizes: the result's tensors may have other shapes than the inputs'.
    """

    def register(kernel: F) -> F:
        if command or not inspect.signature(kernel).parameters:
            return kernel
        from nett.core.passes import on_arrays

        # Only merges take arrays of one shape; others see whole networks, or a matrix and what is known of it.
        asked = {n for n, p in inspect.signature(kernel).parameters.items() if p.kind is not p.KEYWORD_ONLY}
        alike = kind not in ("train", "serve", "make") and not _OF_MANY_SHAPES & asked
        whole = on_arrays(kernel, lambda parameters: view_of(grain, rows, parameters) == "flat") if alike else kernel

        @functools.wraps(kernel)
        def plain(*operands: Any, **given: Any) -> Any:
            card = _card_of(kernel.__module__, kernel.__name__)
            if kind == "serve" and not operands and card is not None:  # what it is put on comes later
                return importlib.import_module(f"nett.{card.room}.engine").serve(card, given)
            return whole(*operands, **(card.resolve(given) if card is not None else given))

        plain.kernel = kernel  # type: ignore[attr-defined]
        return plain  # type: ignore[return-value]

    return register


def view_of(grain: Grain, rows: bool | Mapping[str, Any], parameters: Mapping[str, Any]) -> View:
    """Grain ``stream``: flat chunks; with ``rows``, some indices of the first dimension at a time, in their shape
    (vectors whole). Anything else: whole tensors."""
    if grain != "stream":
        return "whole"
    asked = rows if isinstance(rows, bool) else any(parameters.get(name) == value for name, value in rows.items())
    return "rows" if asked else "flat"


@functools.cache
def _card_of(module: str, name: str) -> Card | None:
    """The card of a kernel, so that a call from Python refuses what the command line refuses; None outside nett."""
    from nett.core.cards import all_cards

    return next((c for c in all_cards() if (c.module, c.name) == (module, name)), None)

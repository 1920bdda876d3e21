"""A room's commands, made from its cards: the method's signature is its options."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import click

from nett.core.cards import all_cards, engine_options
from nett.core.errors import UsageError, did_you_mean
from nett.core.progress import report
from nett.core.registry import Card, Parameter

_DRY = {"dry_run": True, "apply": False, "yes": False}  # what --dry-run means to a command that has one of these


@final
class MethodCommand(click.Command):
    """A command that knows the card it was made from."""

    card: Card | None = None


def option(parameter: Parameter, *, hidden: bool = False) -> click.Option:
    """The option of a parameter, with its range, choices and default in the help unless that is to be ``hidden``."""
    flag = "--" + parameter.name.replace("_", "-")
    limits = parameter.range
    about = [parameter.description.rstrip(".")]
    if limits:
        about.append(limits)
    if parameter.many:
        about.append("one value, or a,b,c, or the option again for each")
    if parameter.grid:
        about.append("or auto")
    if parameter.default is not None and parameter.type != "bool":
        about.append(f"default {parameter.default}")
    text = "; ".join(a for a in about if a) + "."
    if parameter.type == "bool":
        names = [f"{flag}/--no-{flag[2:]}"] if parameter.default else [flag]
        return click.Option(names, default=None, is_flag=True, help=text, show_default=False, hidden=hidden)
    kind = {"path": "PATH", "float": "NUMBER", "int": "N", "choice": "WORD", "str": "TEXT"}[parameter.type]
    many: dict[str, Any] = {"multiple": True, "callback": _joined} if parameter.many else {}
    return click.Option([flag], required=parameter.required, metavar=kind, help=text, hidden=hidden, **many)


def _joined(_ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """``--x a --x b`` is ``--x a,b``; None where it was not given."""
    return ",".join(values) if values else None


def _typed(parameter: Parameter, value: Any, where: str) -> Any:
    checked = parameter.check(value, where)
    return Path(checked) if parameter.type == "path" and checked is not None else checked


def given(parameters: tuple[Parameter, ...], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Of the command line's ``values`` those of ``parameters`` that were given, checked."""
    return {
        p.name: _typed(p, values[p.name], where) for p in parameters if p.name in values and values[p.name] is not None
    }


def method_command(card: Card) -> click.Command:
    """``nett ROOM METHOD ASSET… --options``."""
    if card.kind == "train":
        return _python_command(card)
    engine_function = "make" if card.kind == "make" else "run"
    options = tuple(o for o in engine_options(card.room, engine_function) if o.name != "dry_run" and not card.command)
    taken = {p.name for p in card.parameters}
    options = tuple(o for o in options if o.name not in taken and card.takes(o))

    @click.pass_context
    def call(ctx: click.Context, /, assets: tuple[str, ...], **values: Any) -> None:
        mine = given(card.parameters, values, card.key)
        if card.command:
            if ctx.obj["dry_run"]:
                mine |= {name: value for name, value in _DRY.items() if card.parameter(name) is not None}
            resolved = card.resolve(mine)
            resolved |= {p.name: _typed(p, resolved[p.name], card.key) for p in card.parameters}
            _print(card.load()(list(assets), **resolved), as_json=resolved.get("json") is True)
            return
        engine = importlib.import_module(f"nett.{card.room}.engine")
        common = given(options, values, card.key)
        result = getattr(engine, engine_function)(card, list(assets), mine, dry_run=ctx.obj["dry_run"], **common)
        _summary(result, common.get("out"))

    command = MethodCommand(
        card.name.replace("_", "-"),
        callback=call,
        params=[
            click.Argument(["assets"], nargs=-1, metavar="ASSET..."),
            *(option(p) for p in card.parameters if p.name != "dry_run"),
            *(option(o, hidden=card.refuses(o.name)) for o in options),
        ],
        help=card_help(card),
        short_help=card.summary,
    )
    command.card = card
    return command


def _python_command(card: Card) -> click.Command:
    """Of what trains: help that says how it is used, and whatever else is asked, the same as an error of usage."""

    def call(words: tuple[str, ...]) -> None:
        raise UsageError(
            "it trains your network in your own loop, so it is used from Python, not from the command line",
            where=card.key,
            hint=f"import nett\n\n{card.sections.get('Example', f'nett.{card.room}.{card.name}(…)')}\n\n"
            f"Its parameters: nett show {card.key}",
        )

    command = MethodCommand(
        card.name.replace("_", "-"),
        callback=call,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar="")],
        help=card_help(card),
        short_help=card.summary,
        context_settings={"ignore_unknown_options": True},
    )
    command.card = card
    return command


def recipe_command(room: str, file: str) -> click.Command:
    """``nett ROOM RECIPE.yml --out DIR``, also ``nett ROOM RECIPE.yml DIR`` with the words of the room's peer."""
    options = tuple(o for o in engine_options(room, "recipe") if o.name != "dry_run")
    peer = importlib.import_module(f"nett.{room}.peer_words")

    @click.pass_context
    def call(ctx: click.Context, /, **values: Any) -> None:
        engine = importlib.import_module(f"nett.{room}.engine")
        ours = {o.name: values[o.name] for o in options}
        place = values.pop("place")
        for target, name, value in [("out", "the second word", place)] * (place is not None) + _of_peer(peer, ctx):
            if ours[target] is not None and ours[target] != value:
                raise UsageError(f"--{target.replace('_', '-')} {ours[target]} and {name} {value} say two things")
            ours[target] = value
        if ours["out"] is None:
            raise UsageError("the folder to write is missing", where=file, hint=f"nett {room} {file} --out DIR")
        common = given(options, ours, file)
        _summary(engine.recipe(Path(file), dry_run=ctx.obj["dry_run"], **common), common.get("out"))

    hidden = [
        click.Option([flag, f"peer{i}"], hidden=True, is_flag=not takes, default=None)
        for i, (flag, takes) in enumerate(_peer_options(peer).items())
        if flag[2:].replace("-", "_") not in {o.name for o in options}
    ]
    shown = [option(replace(o, required=False)) for o in options]
    return click.Command(
        file,
        callback=call,
        params=[click.Argument(["place"], required=False, metavar="[DIR]"), *shown, *hidden],
        help=f"Run the recipe {file}.",
    )


def _peer_options(peer: Any) -> dict[str, bool]:
    """The peer's options, and whether they take a value."""
    refused = {flag: takes for flag, (takes, _) in peer.REFUSED.items()}
    return dict.fromkeys(peer.FLAGS, False) | dict.fromkeys([*peer.VALUES, *peer.SAME], True) | refused


def _of_peer(peer: Any, ctx: click.Context) -> list[tuple[str, str, str]]:
    """Of the peer's options that were given: (our option, its name, value) of those that are ours by another name.
    Says what has no effect; UsageError for what is refused."""
    found = []
    for i, flag in enumerate(_peer_options(peer)):
        value = ctx.params.get(f"peer{i}")
        if value is None or value is False:
            continue
        if flag in peer.REFUSED:
            raise UsageError(f"{flag} is not taken here", hint=peer.REFUSED[flag][1])
        if flag in peer.SAME:
            found.append((peer.SAME[flag], flag, peer.in_our_terms(flag, value)))
        else:
            report.say(f"{flag} has no effect: {(peer.FLAGS | peer.VALUES)[flag]}")
    return found


def card_help(card: Card) -> str:
    """A method's card as the help of its command."""
    parts = [card.summary]
    if card.kind == "train":
        parts.append(f"Used from Python; its parameters: nett show {card.key}")
    for title in ("Formula", "Example", "When to use", "When not", "Cost", "Source"):
        if title in card.sections:
            as_it_is = {"Formula": f"\b\n{title}: ", "Example": f"\b\n{title}:\n"}.get(title)
            parts.append(f"{as_it_is or f'{title}: '}{card.sections[title]}")
    return "\n\n".join(parts)


@final
class Room(click.Group):
    """A room: its introduction, its methods, and recipes where its engine runs them."""

    def cards(self) -> dict[str, Card]:
        return {c.name.replace("_", "-"): c for c in all_cards() if c.room == self.name}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(n for n, c in self.cards().items() if not c.hidden)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        assert self.name is not None
        cards = self.cards()
        if cmd_name.replace("_", "-") in cards:
            return method_command(cards[cmd_name.replace("_", "-")])
        if cmd_name.endswith((".yml", ".yaml")) and engine_options(self.name, "recipe"):
            return recipe_command(self.name, cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Not click's own: a recipe's path must not be normalised, and the error should name what exists.
        command = self.get_command(ctx, args[0])
        if command is None:
            near = did_you_mean(args[0].replace("-", "_"), [c.name for c in self.cards().values()])
            raise UsageError(
                f"no method of the room {self.name} is called {args[0]!r}.{near}",
                hint=f"See: nett list {self.name}",
            )
        return args[0], command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods"):
            formatter.write_dl([(n, c.summary) for n, c in sorted(self.cards().items()) if not c.hidden])


def room_group(room: str) -> click.Group:
    """The group of a room, with its introduction as help."""
    import ast

    import nett

    door = Path(nett.__file__).parent / room / "__init__.py"
    introduction = inspect.cleandoc(ast.get_docstring(ast.parse(door.read_bytes())) or room)

    def bare(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    return Room(room, help=introduction, invoke_without_command=True, callback=click.pass_context(bare))


def _print(result: Any, *, as_json: bool = False) -> None:
    """Text as it is; of a command's answer what it says, unless JSON was asked for; anything else as JSON."""
    if isinstance(result, dict) and "say" in result and not as_json:
        for line in result["say"]:
            click.echo(line.encode(errors="backslashreplace").decode())
        return
    if not isinstance(result, str):
        result = json.dumps(result, indent=2, default=str, ensure_ascii=False)
    click.echo(result.encode(errors="backslashreplace").decode())  # names that are no UTF-8, still JSON


def _summary(result: dict[str, Any], out: Any) -> None:
    """What a person wants to know at the end."""
    if "plan" in result or "say" in result:
        _print(result)
        return
    click.echo(f"{out}: {result['room']}/{result['method']}, {result['bytes_after']:,} bytes, proof {result['proof']}")
    for task in result.get("tasks") or []:
        figures = ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in task.items() if isinstance(v, float))
        click.echo(f"  {task['name']}: {figures}")
    if result.get("tasks"):
        click.echo("Rebuilt tasks are approximate, at the distances above. Get one with:")
        click.echo(f"  {result['edges'][0]['command']}" if result["edges"] else "")
    click.echo(f"Receipt: {out}/nett.json   Report: {out}/nett.html   Check it: nett verify {out}")

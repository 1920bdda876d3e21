"""The top command: verbs and rooms, found when they are called; global options, before or after; exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import click

import nett
from nett.core.errors import NettError, UsageError, did_you_mean
from nett.core.progress import report

VERBS = {
    "scan": "What is redundant here, what removing it would free, at what risk, and the command for it.",
    "diff": "Which tensors and layers moved between two checkpoints, and by how much.",
    "convert": "Any checkpoint as safetensors: from GGUF or torch files, in other shards, in another type.",
    "verify": "Check an output against the receipt it carries, and who signed it.",
    "sign": "Sign an output and its receipt with a key of yours.",
    "restore": "Undo, wherever the method is reversible; or rebuild one task.",
    "list": "All methods, by room.",
    "show": "One method: what it does, its options, when to use it.",
    "papers": "The 81 papers and which of them work here.",
    "doctor": "What is installed, and what each extra adds.",
    "claims": "Run a paper's experiment, or write the table of all (needs a checkout).",
    "bench": "Measure a room's speed beside what else one would take (needs a checkout).",
}
GLOBAL = {
    "--dry-run": "Say what would be done and what it would take; do nothing.",
    "--quiet": "No progress; warnings and results only.",
    "--json-events": "Progress as JSON lines on standard error.",
    "--debug": "Show the traceback of an error.",
}
_NORMAL = {"token_normalize_func": lambda word: word.replace("_", "-"), "help_option_names": ["-h", "--help"]}


def rooms() -> dict[str, str]:
    """Rooms that stand, each with the first line of its introduction."""
    import ast

    from nett.core.registry import ROOMS

    package = Path(nett.__file__).parent
    found = {}
    for room in ROOMS:
        door = package / room / "__init__.py"
        if door.is_file() and room != "scan":
            found[room] = (ast.get_docstring(ast.parse(door.read_bytes())) or "").split("\n")[0]
    return found


@final
class Nett(click.Group):
    """Looks commands up by name, so that starting imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *rooms()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in VERBS:
            return importlib.import_module(f"nett.cli.commands.{cmd_name}").command  # type: ignore[no-any-return]
        if cmd_name in rooms():
            from nett.cli.room import room_group

            return room_group(cmd_name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None:
            known = self.list_commands(ctx)
            raise UsageError(
                f"no command is called {args[0]!r}.{did_you_mean(args[0], known)}", hint="See: nett --help"
            )
        return args[0], command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, rows in (("Verbs", VERBS), ("Rooms", rooms())):
            with formatter.section(title):
                formatter.write_dl(list(rows.items()))


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"nett {nett.__version__}")
        ctx.exit()


@click.group(cls=Nett, context_settings=_NORMAL, invoke_without_command=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="The version.")
@click.pass_context
def top(ctx: click.Context, /, **_: Any) -> None:
    """Finds redundancy in machine-learning assets, removes it, and proves what the removal cost.

    Start with: nett scan PATH
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _flag, _help in GLOBAL.items():
    top.params.append(click.Option([_flag], is_flag=True, help=_help + " (before or after the command)"))


def split_global(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """Global options out of the arguments, wherever they stand before a ``--``."""
    rest, found = [], set()
    words = list(arguments)
    for place, word in enumerate(words):
        if word == "--":
            rest += words[place:]
            break
        if word.replace("_", "-") in GLOBAL:
            found.add(word.replace("_", "-"))
        elif word == "--version":
            return ["--version"], found
        else:
            rest.append(word)
    return rest, found


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors are one message, never a traceback without --debug."""
    words, flags = split_global(arguments)
    report.style = "json" if "--json-events" in flags else "quiet" if "--quiet" in flags else "auto"
    debug = "--debug" in flags
    try:
        top.main(args=words, prog_name="nett", standalone_mode=False, obj={"dry_run": "--dry-run" in flags})
    except NettError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if debug:
            raise
        return _fail(_explained(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; run the same command again to resume", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if debug:
            raise
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory\n  Fewer --threads need less.", 1)
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error: {type(error).__name__}: {error}\n  Run again with --debug and report it.", 1)
    finally:
        report.end()
    return 0


def _explained(error: click.ClickException) -> str:
    """A click error as one of ours: what, where, what to do."""
    context = getattr(error, "ctx", None)
    card = getattr(getattr(context, "command", None), "card", None)
    if isinstance(error, click.NoSuchOption) and context is not None and card is not None:
        from nett.core.cards import engine_options

        bare = error.option_name.lstrip("-")
        if any(o.name.replace("_", "-") == bare for o in engine_options(card.room, "run")) and not card.command:
            return (
                f"{card.key}: --{bare} means nothing to this method\n  Leave it out; see: {context.command_path} --help"
            )
        try:
            card.resolve({bare: None})
        except UsageError as ours:
            return str(ours)
    where = context.command_path if context else "nett"
    return f"{error.format_message()}\n  See: {where} --help"


def _fail(message: str, code: int) -> int:
    report.end()
    if report.style == "json":
        report._emit({"event": "error", "exit": code, "text": message})
    else:
        print(f"nett: {message}", file=sys.stderr)
    return code

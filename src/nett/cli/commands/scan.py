"""``nett scan`` of the disk, ``nett scan PATH…`` of models, ``nett scan PROBE PATH…`` for one probe with its own
options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from nett.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from nett.core.registry import Card
    from nett.scan.engine import Scan

SHOWN = 40


def _options(*, required: bool) -> list[click.Parameter]:
    file = click.Path(path_type=Path)
    return [
        click.Argument(["paths"], nargs=-1, required=required, metavar="PATH..." if required else "[PATH...]"),
        click.Option(["--base"], metavar="PATH", help="The model that the others were tuned from."),
        click.Option(["--json", "json_file"], type=file, metavar="FILE", help="Write the findings as JSON."),
        click.Option(["--html", "html_file"], type=file, metavar="FILE", help="Write a page with pictures."),
        click.Option(
            ["--threads"], type=click.IntRange(0, 64), default=0, help="How many threads work; 0 for all."
        ),
    ]  # fmt: skip


@final
class ScanCommand(click.Command):
    """All probes; or the one that the first word names, unless there is a file or folder of that name."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and not args[0].startswith("-") and not Path(args[0]).exists():
            from nett.core.cards import all_cards

            name = args[0].replace("-", "_")
            card = next((c for c in all_cards() if c.room == "scan" and c.name == name), None)
            near = did_you_mean(name, [c.name for c in all_cards() if c.room == "scan"])
            if card is None and "Did" in near:
                raise UsageError(f"{args[0]!r} is no file, no folder and no probe.{near}", hint="See: nett list scan")
            if card is not None:
                return _probe_command(card).make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _probe_command(card: Card) -> click.Command:
    from nett.cli.room import MethodCommand, card_help, given, option

    def call(**values: Any) -> None:
        own = given(card.parameters, values, card.key)
        _scan({card.name: own}, **{k: v for k, v in values.items() if k in _NAMES})

    found = MethodCommand(
        card.name, callback=call, params=[*_options(required=True), *map(option, card.parameters)], help=card_help(card)
    )
    found.card = card
    return found


_NAMES = ("paths", "base", "json_file", "html_file", "threads")


def _scan(
    probes: Mapping[str, Mapping[str, Any]],
    *,
    paths: tuple[str, ...],
    base: str | None,
    json_file: Path | None,
    html_file: Path | None,
    threads: int,
) -> None:
    import json

    from nett.scan import engine

    found = engine.run_probes(probes, list(paths), base=base, threads=threads)
    from nett.scan.page import scan_page, summary

    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(f"{summary(found)} ({found.seconds:.1f} s)")
    _show(found)
    if html_file is not None:
        scan_page(found).write(html_file)


def _show(found: Scan) -> None:
    """The findings in columns, their commands once below, then the figures of each checkpoint."""
    from nett.cli.text import columns, common_folder, figure
    from nett.scan import interference_page
    from nett.scan.page import alike, by_checkpoint, commands, of_layers

    known, groups = commands(found), alike(found.edges)
    first = groups[:SHOWN]
    folder = common_folder([e.target.partition("::")[0] for e, *_ in first])
    rows = [
        (f"{e.bytes_freed * n:,}", e.guarantee, "0" if e.error == 0 else "-" if e.error is None else f"{e.error:.3g}",
         e.kind, target.removeprefix(folder) + of_layers(n),
         f"[{known.index(e.command) + 1}]" if e.command else "")
        for e, target, n in first
    ]  # fmt: skip
    if rows:
        headers = ("bytes", "guarantee", "error", "finding", f"target in {folder}" if folder else "target", "")
        click.echo("\n".join(columns(headers, rows, right=("bytes", "error"))))
    else:
        click.echo("Nothing redundant was found.")
    if len(groups) > SHOWN:
        rest = sum(n for _, _, n in groups[SHOWN:])
        click.echo(f"… and {rest} more; --json FILE has all")
    for number, text in enumerate(known, start=1):
        if any(row[-1] == f"[{number}]" for row in rows):
            click.echo(f"[{number}] {text}")
    for probe, (heads, lines) in by_checkpoint(found).items():
        click.echo(f"\n{probe.replace('_', ' ')}")
        click.echo("\n".join(columns(heads, [[figure(v) for v in line] for line in lines], right=heads[1:])))
    for run in found.probes:
        asked = len(found.probes) == 1 or len(found.assets) > 2  # else nobody expects to hear of several fine-tunes
        if run.name == "interference" and (asked or run.findings.figures["compared"]):
            click.echo("\n".join(interference_page.said(run.findings.figures)))


def _all_probes(only: tuple[str, ...], disk: bool, exact: bool, text: Path | None, **values: Any) -> None:
    """What is redundant, what removing it would free, at what risk, and the command for it.

    nett scan looks through the places where models lie: the caches of Hugging Face, Ollama, LM Studio and torch hub, and
    the working folder; nett scan --disk DIR... through folders of yours. Both estimate from headers and sampled pages,
    and read everything with --exact.

    nett scan PATH... runs all probes over checkpoints and reads every byte of them; with --text FILE also those that run a
    language model on it. nett scan PROBE PATH... runs one probe, with its own options; nett list scan names them.
    """
    named = [word for words in only for word in words.split(",") if word]
    if not disk and values["paths"]:
        from nett.scan.engine import chosen

        read = {} if text is None else {"text": str(text)}
        _scan({card.name: read if card.parameter("text") else {} for card in chosen(named)}, **values)
        return
    for option, given in (("--only", named), ("--base", values.pop("base")), ("--text", text)):
        if given:
            raise UsageError(f"{option} is for checkpoints that are named: nett scan PATH... {option} ...")
    folders = values.pop("paths")
    if disk and not folders:
        raise UsageError("--disk needs a folder: nett scan --disk DIR", hint="nett scan alone looks where models lie.")
    from nett.cli.disk import scan_disk

    scan_disk(folders, exact=exact, **values)


command = ScanCommand(
    "scan",
    callback=_all_probes,
    params=[
        *_options(required=False),
        click.Option(["--disk"], is_flag=True, help="The paths are folders full of models: what they hold together."),
        click.Option(["--exact"], is_flag=True, help="Read every byte, where a disk would be estimated from samples."),
        click.Option(
            ["--text"],
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            metavar="FILE",
            help="Text that language models are run on, for probes of what goes through them.",
        ),
        click.Option(
            ["--only"], multiple=True, metavar="PROBE", help="Run only this probe (again for more; or a,b,c)."
        ),
    ],
    help=_all_probes.__doc__,
)

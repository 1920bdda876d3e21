"""``nett doctor``."""

from __future__ import annotations

import click

import nett

ADDS = {
    "base": "checkpoints, scan, diff, merges, reports",
    "models": "GGUF and torch files, transformers models, the speak check, tokenizers",
    "lake": "tables: Parquet, CSV, JSON lines, Arrow, Delta, Iceberg, S3",
    "spark": "tables and corpora on Apache Spark",
    "store": "nett store: models kept once, differences, exact plans",
    "sign": "nett sign, nett verify --key",
    "claims": "what the papers' experiments need",
    "dev": "tests, types and lint",
    "all": "all of these but dev",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def command(as_json: bool) -> None:
    """What is installed, what each extra adds, what this machine offers. Always exits 0."""
    import json
    import os
    import platform
    import re
    import shutil
    from importlib.metadata import PackageNotFoundError, requires, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    try:
        wanted = requires("nett") or []
    except PackageNotFoundError:  # run from a folder, not installed
        wanted = []
    extras: dict[str, dict[str, str | None]] = {}
    for line in wanted:
        name = re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]
        marker = re.search(r"extra\s*==\s*['\"](\w+)['\"]", line)
        if name != "nett":
            extras.setdefault(marker[1] if marker else "base", {})[name] = installed(name)
    tools = {name: shutil.which(name) for name in ("chromium", "java", "git")}
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = {
        "nett": nett.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": pages * page,
        "assets": os.environ.get("NETT_ASSETS"),
        "extras": extras,
        "tools": {name: bool(path) for name, path in tools.items()},
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"nett {nett.__version__}, Python {found['python']}, {found['cores']} cores, {pages * page / 1e9:.1f} GB memory"
    )
    for extra, packages in extras.items():
        lacking = [n for n, v in packages.items() if v is None]
        state = "complete" if not lacking else f"lacks {', '.join(lacking)}: pip install 'nett[{extra}]'"
        about = f" ({ADDS[extra]})" if extra in ADDS else ""
        click.echo(f"{extra}{about}: {state}")
        if len(lacking) < len(packages):
            click.echo("  " + ", ".join(f"{n} {v}" for n, v in packages.items() if v is not None))
    for name, path in tools.items():
        click.echo(f"{name}: {'found' if path else 'not found'}")
    click.echo(f"NETT_ASSETS: {found['assets'] or 'not set (benchmarks and claims on real assets are skipped)'}")

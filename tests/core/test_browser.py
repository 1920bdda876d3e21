"""The pages in a real browser: they open, nothing is reported, and what is shown is no blank page.

Needs Chromium (Debian package ``chromium``). Skipped where it is not installed, except where CI is true: there a
skip would be a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nett.core.tiny import fine_tune_of, write_llama
from support.cli import nett
from support.png import pixels

pytestmark = pytest.mark.browser
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
]  # fmt: skip
WIDE, HIGH = 1040, 1600


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        reason = "Chromium is not installed: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scan, a diff and two merges of one family, each with its page."""
    folder = tmp_path_factory.mktemp("pages")
    base = write_llama(folder / "base", layers=4)
    tuned = [fine_tune_of(base, folder / f"m{i}", seed=i, density=0.1 * i) for i in (1, 2, 3)]
    models = [str(m) for m in tuned]
    nett("scan", str(base), *models, "--html", str(folder / "scan.html")).succeeded()
    nett("diff", str(base), models[0], "--html", str(folder / "diff.html")).succeeded()
    for method in ("ties", "tall_masks"):
        nett("merge", method, *models, "--base", str(base), "--out", str(folder / method), "--no-speak").succeeded()
    return {
        "scan": folder / "scan.html", "diff": folder / "diff.html", "ties": folder / "ties" / "nett.html",
        "tall_masks": folder / "tall_masks" / "nett.html",
    }  # fmt: skip


def test_pages_in_chromium(chromium: str, pages: dict[str, Path], tmp_path: Path) -> None:
    """All of them in one window, side by side in frames of a page that only this test has."""
    frames = "".join(
        f'<iframe src="file://{path}" style="position:absolute;border:0;left:{i * WIDE}px;top:0;width:{WIDE}px;height:{HIGH}px"></iframe>'
        for i, path in enumerate(pages.values())
    )
    (tmp_path / "all.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frames}')
    shot = tmp_path / "shot.png"
    command = [
        chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={WIDE * len(pages)},{HIGH}",
        f"--screenshot={shot}", f"file://{tmp_path / 'all.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and shot.is_file(), done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused to" in line]
    assert not console, console
    image = pixels(shot)
    assert image.shape == (HIGH, WIDE * len(pages), 3)
    blue = np.array([0x2F, 0x6D, 0xB3])  # the first colour of the charts
    for i, name in enumerate(pages):
        part = image[:, i * WIDE : (i + 1) * WIDE].astype(np.int16)
        ink = (part.max(axis=2) < 100).mean()
        drawn = (np.abs(part - blue).max(axis=2) < 12).mean()
        white = (part.min(axis=2) > 250).mean()
        print(f"{name}: ink {ink:.3f}, bars {drawn:.3f}, white {white:.3f}")
        assert 0.003 < ink < 0.3 and drawn > 0.005 and 0.4 < white < 0.99, name


def test_a_page_that_breaks_its_policy_would_be_noticed(chromium: str, tmp_path: Path) -> None:
    """The test above can fail: the browser says on standard error what a page may not do."""
    from nett.core.report import Page

    html = Page("t").render().replace("</main>", '</main><script>alert(1)</script><img src="file:///x.png">')
    (tmp_path / "bad.html").write_text(html)
    command = [
        chromium,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path / 'bad.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert sum("CONSOLE" in line for line in done.stderr.splitlines()) >= 2, done.stderr

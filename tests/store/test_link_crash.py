"""Killed at any write step, linking and restoring leave every name with its bytes; run again, they end as if nothing
had been."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nett.core.receipt import read_receipt
from nett.store import engine
from support.cli import nett
from support.deaths import deaths, every_step
from support.forge import forge

FILES = {"a/x": 1, "b/x": 1, "a/z": 2, "b/z": 2, "c/x y": 1, "a/alone": 3}


def tree(root: Path, files: int = 9) -> Path:
    """Three equal files, two more of which one has a second name, one alone; or the first of them."""
    for name, seed in list(FILES.items())[:files]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([seed]) * 5000)
        os.utime(path, ns=(10**18, 10**18 + len(name)))
    if files > 4:
        os.link(root / "b" / "z", root / "c" / "z")
    return root


def bytes_of(root: Path) -> dict[str, bytes]:
    """What programs see: every file that is not nett's own."""
    files = [f for f in root.rglob("*") if f.is_file() and not any(p.startswith(".nett-link") for p in f.parts)]
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def partition(root: Path) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name in bytes_of(root):
        groups.setdefault((root / name).lstat().st_ino, set()).add(name)
    return {frozenset(g) for g in groups.values()}


def leftovers(root: Path) -> list[Path]:
    return [p for p in root.rglob(".nett*") if p.name != ".nett-link"]


@every_step
@pytest.mark.parametrize("reflinks", [False, True], ids=["hardlinks", "reflinks"])
def test_death_at_every_write_step(tmp_path: Path, reflinks: bool, dense: bool) -> None:
    files = 4 if reflinks else 9
    calm = tree(tmp_path / "calm", files)
    expected, apart = bytes_of(calm), partition(calm)
    kinds = forge().run("support.work:kinds", call="link", folders=[str(calm)], reflinks=reflinks)
    linked = partition(calm)
    assert bytes_of(calm) == expected and len(kinds) > 20 and (reflinks or linked != apart)
    for step in deaths(kinds, every=5, offset=2 * reflinks, dense=dense):
        root = tree(tmp_path / f"tree{step}", files)
        arguments = {"call": "link", "folders": [str(root)], "reflinks": reflinks}
        forge().start("support.work:counted", die_at=step, torn=step % 2 == 1, **arguments)
        assert forge().wait().code == 77
        assert bytes_of(root) == expected, step
        receipt = root / ".nett-link"
        if step % 3 == 0 and (receipt / "nett.json").exists():  # undone at once, from what was left
            forge().run("support.work:unlink", folder=str(receipt))
        else:
            forge().run("support.work:link", folders=[str(root)], reflinks=reflinks)
            assert reflinks or partition(root) == linked, step
            assert not leftovers(root), step
            if (receipt / "nett.json").exists():
                nett("verify", str(receipt)).succeeded()
                engine.restore(receipt, read_receipt(receipt))
        assert bytes_of(root) == expected and partition(root) == apart, step
        assert not leftovers(root), step
        shutil.rmtree(root)


@every_step
def test_death_at_every_write_step_of_a_restore(tmp_path: Path, dense: bool) -> None:
    made = tree(tmp_path / "made", 5)
    expected, apart = bytes_of(made), partition(made)
    forge().run("support.work:link", folders=[str(made)])
    linked = partition(made)

    def again() -> tuple[Path, Path]:
        """The linked tree once more, under the same path, which the journal holds."""
        shutil.rmtree(made)
        tree(made, 5)
        forge().run("support.work:link", folders=[str(made)])
        assert partition(made) == linked
        return made, made / ".nett-link"

    root, receipt = again()
    kinds = forge().run("support.work:kinds", call="unlink", folder=str(receipt))
    assert partition(root) == apart and len(kinds) > 15
    for step in deaths(kinds, every=5, offset=1, dense=dense):
        root, receipt = again()
        forge().start("support.work:counted", call="unlink", folder=str(receipt), die_at=step, torn=step % 2 == 1)
        assert forge().wait().code == 77
        assert bytes_of(root) == expected, step
        forge().run("support.work:unlink", folder=str(receipt))
        assert bytes_of(root) == expected and partition(root) == apart, step
        assert not leftovers(root), step
        nett("verify", str(receipt)).succeeded()


def test_what_a_kill_left_is_told_and_removed(tmp_path: Path) -> None:
    """Also in folders where there is nothing to link; a name of the user's own that only looks alike stays."""
    root = tree(tmp_path / "tree")
    left = [root / "a" / f".nett-link-{'0' * 32}", root / "empty" / f".nett-link-{'f' * 32}"]
    (root / "empty").mkdir()
    os.link(root / "a" / "x", left[0])
    left[1].write_bytes(b"half")
    (root / "a" / ".nett-link-of-mine").write_bytes(b"mine")
    words = ["store", "link", str(root), "--min-size", "1"]
    assert "2 files left by a run that was killed: --apply removes them" in nett(*words).succeeded().out
    assert all(p.exists() for p in left)
    nett(*words, "--apply", "--hardlink").succeeded()
    assert not any(p.exists() for p in left) and (root / "a" / ".nett-link-of-mine").exists()


def as_nobody(*words: str) -> tuple[int, str, str]:
    code, out, err = forge().run("support.work:unprivileged", words=words)
    return code, out, err


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become nobody")
def test_as_an_unprivileged_user(tmp_path: Path) -> None:
    """What may not be read, written or linked is refused, each with its reason; what is the user's own is linked."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    root = tree(tmp_path / "tree")
    mine, others = ["mine/1", "mine/2"], ["foreign/1", "locked/1", "hidden/1", "sticky/1"]
    for name in mine + others:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"m" * 6000)
    for path in [root, *root.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.chown(root / "foreign" / "1", 0, 0)  # another's file in one's own folder
    (root / "locked").chmod(0o555)
    (root / "hidden").chmod(0o000)
    os.chown(root / "sticky", 0, 0)
    (root / "sticky").chmod(0o1777)
    os.chown(root / "sticky" / "1", 0, 0)
    before = bytes_of(root)
    words = ["store", "link", str(root), "--min-size", "1", "--hardlink"]
    code, out, err = as_nobody(*words, "--json")
    assert code == 0, err
    refused = {r["path"].removeprefix(f"{root}/"): r["reason"] for r in json.loads(out)["refused"]}
    assert "cannot be read: Permission denied" in refused["hidden"]
    assert refused.keys() >= {"foreign/1", "sticky/1"}
    code, out, err = as_nobody(*words, "--apply")
    assert code == 0, err
    assert bytes_of(root) == before
    one = {(root / m).stat().st_ino for m in ["mine/1", "mine/2", "locked/1"]}
    assert len(one) == 1 and (root / "locked" / "1").stat().st_ino in one  # locked was kept, its folder not written
    assert all((root / n).stat().st_nlink == 1 for n in ("foreign/1", "sticky/1", "hidden/1"))
    code, out, err = as_nobody("restore", str(root / ".nett-link"))
    assert code == 0 and bytes_of(root) == before, err
    assert (root / "mine" / "1").stat().st_uid == 65534
    (root / "away").mkdir()
    code, out, err = as_nobody(*words, "--apply", "--receipt", str(root / "away" / "r"))
    assert code == 3 and "cannot be written: Permission denied" in err and "--receipt" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become nobody")
def test_files_of_others_are_not_linked_by_an_unprivileged_user(tmp_path: Path) -> None:
    """fs.protected_hardlinks: only what one could write may get a further name."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    root = tmp_path / "tree"
    for name in ("1", "2"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"m" * 6000)
    os.chown(root, 65534, 65534)
    _, _, err = as_nobody("store", "link", str(root), "--min-size", "1", "--hardlink", "--apply")
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "0"
    assert (root / "1").stat().st_nlink == (1 if protected else 2), err
    found: dict[str, Any] = json.loads(
        as_nobody("store", "link", str(root), "--min-size", "1", "--hardlink", "--json")[1]
    )
    assert not protected or "fs.protected_hardlinks forbids" in found["refused"][0]["reason"]

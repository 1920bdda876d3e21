"""Equal files come to share their bytes: every name keeps its bytes, what is refused is named, all of it is undone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.edge import SCHEMA
from nett.core.errors import NettError, Refused, UsageError
from nett.core.receipt import open_sha256, read_receipt
from nett.store import engine, sharing
from support.cli import nett
from support.reflinks import FakeReflinks

link = importlib.import_module("nett.store.link")
SIZE = 5000


def write(path: Path, seed: int = 0, size: int = SIZE) -> Path:
    """A file whose bytes ``seed`` decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"%d:" % seed * size)[:size])
    return path


def run(*folders: Path, apply: bool = True, hardlink: bool = True, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = link.link(
        [str(f) for f in folders], apply=apply, hardlink=hardlink, min_size="1", **options
    )
    return found


def contents(*folders: Path) -> dict[str, bytes]:
    """Bytes by path, of every regular file but receipts."""
    files = [f for d in folders for f in d.rglob("*") if f.is_file() and not f.is_symlink()]
    return {str(f): f.read_bytes() for f in files if ".nett-link" not in f.parts}


def state(path: Path) -> tuple[Any, ...]:
    """All that lstat tells but the time of reading."""
    return tuple(
        getattr(path.lstat(), f"st_{n}")
        for n in ["mode", "ino", "dev", "nlink", "uid", "gid", "size", "mtime_ns", "ctime_ns"]
    )


def inode(path: Path) -> int:
    return path.lstat().st_ino


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {r["path"]: r["reason"] for r in found["refused"]}


def separated(folder: Path) -> list[str]:
    said: list[str] = engine.restore(folder, read_receipt(folder))["say"]
    return said


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three equal files, the first the oldest, and one that only has their size."""
    made = [write(tmp_path / d / "model.safetensors") for d in ("a", "b", "c")]
    for age, path in enumerate(made):
        os.utime(path, ns=(10**18, 10**18 + age))
    write(tmp_path / "d" / "model.safetensors", seed=1)
    return made


def test_a_plan_says_what_would_be_done_and_touches_nothing(tmp_path: Path, three: list[Path]) -> None:
    before = {p: state(p) for p in sorted(tmp_path.rglob("*"))}
    said = nett("store", "link", str(tmp_path), "--min-size", "1kB", "--json").succeeded()
    found = json.loads(said.out)
    assert {p: state(p) for p in sorted(tmp_path.rglob("*"))} == before
    (group,) = found["groups"]
    assert group["kept"] == str(three[0]) and group["bytes"] == SIZE
    assert [c["path"] for c in group["copies"]] == [str(p) for p in three[1:]]
    for edge in found["edges"]:
        jsonschema.validate(edge, SCHEMA)
        assert (edge["kind"], edge["guarantee"], edge["error"]) == ("equal_file", "exact", 0)
        assert edge["sources"] == [str(three[0])] and edge["bytes_freed"] == three[1].stat().st_blocks * 512
        assert edge["command"] == f"nett store link {tmp_path} --apply --hardlink --min-size 1kB"
    assert not found["applied"] and found["receipt"] is None
    assert any("edits it in place" in note for note in found["notes"])


def test_hardlinks_want_to_be_allowed(tmp_path: Path, three: list[Path]) -> None:
    words = ["store", "link", str(tmp_path), "--min-size", "1"]
    text = nett(*words).succeeded().out
    assert "--hardlink allows" in text and "Nothing was changed" in text
    nett(*words, "--apply").failed(3, "--hardlink allows", "edits it in place", "--apply --hardlink")
    assert len({inode(p) for p in three}) == 3 and not (tmp_path / ".nett-link").exists()
    assert "5,000 bytes" in nett(*words, "--apply", "--hardlink", "--dry-run").succeeded().out
    assert len({inode(p) for p in three}) == 3
    said = nett(*words, "--apply", "--hardlink").succeeded()
    assert "warning: a hardlinked file" in said.err and "nett restore" in said.out
    assert len({inode(p) for p in three}) == 1


def test_linked_verified_restored(tmp_path: Path, three: list[Path]) -> None:
    before = contents(tmp_path)
    states = {p: os.lstat(p) for p in three}
    done = run(tmp_path)
    receipt = tmp_path / ".nett-link"
    assert done["receipt"] == str(receipt) and done["bytes_freed"] == 2 * three[0].stat().st_blocks * 512
    assert contents(tmp_path) == before and {inode(p) for p in three} == {states[three[0]].st_ino}
    assert run(tmp_path)["groups"] == []
    pairs = [json.loads(line) for line in (receipt / "pairs.jsonl").read_text().splitlines()]
    assert [p["copies"] for p in pairs if "pair" in p] == [[str(p)] for p in three[1:]]
    for pair in pairs[:2]:
        assert pair["sha256"] == file_hash(three[0]) and pair["how"] == "hardlink" and pair["kept"] == str(three[0])
        assert pair["copy_inode"][1] in {s.st_ino for s in states.values()} and pair["time"]
    assert f"{receipt}: all 2 checks hold" in nett("verify", str(receipt)).succeeded().out
    assert (receipt / "nett.html").read_text().count("equal_file") or "equal file" in (
        receipt / "nett.html"
    ).read_text()
    assert "Nothing was changed" in nett("restore", str(receipt), "--dry-run").succeeded().out
    assert len({inode(p) for p in three}) == 1
    assert "2 files are separate again" in nett("restore", str(receipt)).succeeded().out
    assert contents(tmp_path) == before and len({inode(p) for p in three}) == 3
    for path, state in states.items():
        assert (os.lstat(path).st_mtime_ns, os.lstat(path).st_mode) == (state.st_mtime_ns, state.st_mode)
    assert "0 files are separate again" in nett("restore", str(receipt)).succeeded().out
    nett("verify", str(receipt)).succeeded()
    assert run(tmp_path)["bytes_freed"] == done["bytes_freed"]
    nett("verify", str(receipt)).succeeded()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return open_sha256(file.fileno())


FILES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "a/deep", "c"]),
        st.integers(0, 3),  # what it holds
        st.sampled_from([1, 4095, 70_000, 400_000]),
        st.sampled_from(["new", "new", "new", "name", "symlink"]),
        st.sampled_from([0o644, 0o644, 0o600]),
    ),
    max_size=14,
)


@settings(max_examples=25)
@given(files=FILES, reflinks=st.sampled_from([None, False, True]))
def test_any_tree(tmp_path_factory: pytest.TempPathFactory, files: list[Any], reflinks: bool | None) -> None:
    """Whatever lies there: names keep bytes, one inode a content and mode, links stay links, and all of it undone."""
    root = tmp_path_factory.mktemp("tree")
    made: list[Path] = []
    for i, (folder, seed, size, kind, mode) in enumerate(files):
        path = root / folder / f"f{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "new" or not made:
            write(path, seed, size).chmod(mode)
            made.append(path)
        elif kind == "name":
            os.link(made[seed % len(made)], path)
        else:
            path.symlink_to(made[seed % len(made)])
    before, names = contents(root), partition(root)
    links = {p: os.readlink(p) for p in root.rglob("*") if p.is_symlink()}
    used = allocated(root)
    with pytest.MonkeyPatch.context() as patch:
        if reflinks is not None:
            FakeReflinks(in_place=reflinks).install(sharing, patch.setattr)
        done = run_any(root)
        assert contents(root) == before
        assert {p: os.readlink(p) for p in root.rglob("*") if p.is_symlink()} == links
        if reflinks is None:
            assert done["bytes_freed"] == used - allocated(root)
            kinds = {(b, os.stat(p).st_mode) for p, b in before.items()}
            assert len(partition(root)) == len(kinds)
        elif reflinks:
            assert partition(root) == names and not done["refused"]
        assert run_any(root)["bytes_freed"] == 0
        if done["receipt"]:
            nett("verify", done["receipt"]).succeeded()
            separated(Path(done["receipt"]))
    assert contents(root) == before and partition(root) == names
    assert not list(root.rglob(".nett-link-*"))
    shutil.rmtree(root)


def run_any(root: Path) -> dict[str, Any]:
    """A run that may come to nothing: a clone would part the names of all that is there."""
    try:
        return run(root)
    except Refused as error:
        assert "several names" in str(error)
        return {"bytes_freed": 0, "receipt": str(root / ".nett-link"), "refused": [str(error)]}


def partition(root: Path) -> set[frozenset[str]]:
    """Which paths are one file."""
    groups: dict[int, set[str]] = {}
    for path in contents(root):
        groups.setdefault(os.lstat(path).st_ino, set()).add(path)
    return {frozenset(g) for g in groups.values()}


def allocated(root: Path) -> int:
    return sum({s.st_ino: s.st_blocks * 512 for s in map(os.lstat, contents(root))}.values())


def test_a_clone_takes_the_name_and_keeps_what_the_file_had(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeReflinks().install(sharing, monkeypatch.setattr)
    three[1].chmod(0o640)
    os.chown(three[2], 1234, 1234) if os.geteuid() == 0 else None
    attribute = settable(three[2], "user.origin", b"https://example.org")
    before = [os.lstat(p) for p in three]
    done = run(tmp_path, hardlink=False)
    assert fake.clones == 2 + 1 and {c["how"] for c in done["groups"][0]["copies"]} == {"reflink"}  # and one to try
    for path, old in zip(three, before, strict=True):
        now = os.lstat(path)
        kept = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink", "st_size")
        assert [getattr(now, k) for k in kept] == [getattr(old, k) for k in kept]
        assert (now.st_ino == old.st_ino) == (path == three[0])
    assert not attribute or os.getxattr(three[2], "user.origin") == b"https://example.org"
    assert run(tmp_path, hardlink=False)["groups"] == []
    assert "2 files are separate again" in separated(Path(done["receipt"]))
    assert not attribute or os.getxattr(three[2], "user.origin") == b"https://example.org"


def settable(path: Path, name: str, value: bytes) -> bool:
    try:
        os.setxattr(path, name, value)
    except OSError:
        return False
    return True


def test_shared_in_place_nothing_but_blocks_changes(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeReflinks(in_place=True).install(sharing, monkeypatch.setattr)
    os.link(three[1], tmp_path / "another name")
    before = {p: state(p) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(run(tmp_path, hardlink=False)["groups"][0]["copies"]) == 2
    assert {p: state(p) for p in before} == before


def test_a_clone_would_part_the_names_of_a_file(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeReflinks().install(sharing, monkeypatch.setattr)
    for path in three[:2]:
        os.link(path, f"{path}.too")
    done = run(tmp_path, hardlink=False)
    assert "several names" in reasons(done)[str(three[1])]
    assert [c["path"] for g in done["groups"] for c in g["copies"]] == [str(three[2])]
    assert os.path.samefile(three[1], f"{three[1]}.too")


@pytest.mark.skipif("NETT_REFLINKS" not in os.environ, reason="NETT_REFLINKS names no folder on btrfs or xfs")
def test_real_reflinks() -> None:
    """On a file system that has them: blocks are freed, names and inodes stay, a second run finds nothing."""
    root = Path(os.environ["NETT_REFLINKS"]) / "nett-test"
    shutil.rmtree(root, ignore_errors=True)
    blob = os.urandom(20_000_000)
    for name in ("a", "b", "c"):
        (root / name).mkdir(parents=True)
        (root / name / "m").write_bytes(blob)
    os.sync()
    states = {n: state(root / n / "m") for n in "abc"}
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
    done = run(root, hardlink=False)
    os.sync()
    assert os.statvfs(root).f_bavail * os.statvfs(root).f_frsize - free > 35_000_000
    assert {n: state(root / n / "m") for n in "abc"} == states and set(contents(root).values()) == {blob}
    assert run(root, hardlink=False)["groups"] == []
    separated(Path(done["receipt"]))
    os.sync()
    assert free - os.statvfs(root).f_bavail * os.statvfs(root).f_frsize > -1_000_000
    assert set(contents(root).values()) == {blob}
    run(root, hardlink=False)
    with pytest.MonkeyPatch.context() as patch:  # a kernel that clones only
        separated(Path(done["receipt"]))
        patch.setattr(sharing, "deduplicate", lambda *_: False)
        assert len(run(root, hardlink=False)["groups"][0]["copies"]) == 2
    assert run(root, hardlink=False)["groups"] == [] and set(contents(root).values()) == {blob}
    shutil.rmtree(root)


# What is refused. ``three[1]`` is spoilt each time; the other pair goes on.
def refused(root: Path, three: list[Path], *parts: str, **options: Any) -> None:
    before = contents(root)
    planned = run(root, apply=False, **options)
    done = run(root, **options)
    for found in (planned, done):
        assert all(part in reasons(found)[str(three[1])] for part in parts), reasons(found)
    assert inode(three[1]) not in (inode(three[0]), inode(three[2]))
    assert inode(three[0]) == inode(three[2])
    assert contents(root) == before


def test_open_for_writing(tmp_path: Path, three: list[Path]) -> None:
    with three[1].open("r+b"):
        refused(tmp_path, three, "is open for writing", f"process {os.getpid()}")


@pytest.mark.parametrize("leases", [True, False])
def test_opened_for_writing_after_the_plan(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch, leases: bool
) -> None:
    """The kernel's word on it where it gives leases, what /proc shows where it does not."""
    import fcntl

    if not leases:
        real = fcntl.fcntl

        def no_leases(fd: int, command: int, *rest: Any) -> Any:
            if command == fcntl.F_SETLEASE:
                raise OSError(22, "Invalid argument")
            return real(fd, command, *rest)

        monkeypatch.setattr(fcntl, "fcntl", no_leases)
    with during(monkeypatch, three[1], lambda: three[1].open("r+b")):
        done = run(tmp_path)
    assert "is open for writing" in reasons(done)[str(three[1])]
    assert inode(three[0]) == inode(three[2]) != inode(three[1])


def during(patch: pytest.MonkeyPatch, path: Path, act: Callable[[], Any]) -> Any:
    """``act`` happens between the plan and the acts. Returns what it returns, to be closed."""
    import contextlib

    from nett.store import link_plan

    real = link_plan.plan_links
    stack = contextlib.ExitStack()

    def planned(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        made = act()
        if hasattr(made, "__exit__"):
            stack.enter_context(made)
        return found

    patch.setattr(link_plan, "plan_links", planned)
    return stack


def test_a_writer_that_comes_during_the_comparison_waits_and_is_seen(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, and the writer's bytes end up where the writer meant them to."""
    import threading

    from nett.store import acting

    real, writers = acting.compare, list[threading.Thread]()

    def append() -> None:
        with three[1].open("ab") as file:
            file.write(b"more")

    def compare(one: Any, other: Any, size: int) -> str:
        digest = real(one, other, size)
        if other.name.path == str(three[1]):
            writers.append(threading.Thread(target=append))
            writers[0].start()
            time.sleep(0.1)
        return digest

    monkeypatch.setattr(acting, "compare", compare)
    done = run(tmp_path)
    writers[0].join()
    assert "is open for writing" in reasons(done)[str(three[1])]
    assert three[1].read_bytes().endswith(b"more") and three[0].stat().st_size == SIZE
    assert inode(three[0]) == inode(three[2])


def test_changed_after_it_was_hashed(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with during(monkeypatch, three[1], lambda: three[1].write_bytes(b"x" * SIZE)):
        done = run(tmp_path)
    assert "has changed" in reasons(done)[str(three[1])] and three[1].read_bytes() == b"x" * SIZE


def test_changed_without_a_trace(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where no time tells, the comparison does."""
    from nett.store.tree import File

    monkeypatch.setattr(File, "is_state", lambda *_: True)
    with during(monkeypatch, three[1], lambda: three[1].write_bytes(b"x" * SIZE)):
        done = run(tmp_path)
    assert "its bytes are not those of" in reasons(done)[str(three[1])] and three[1].read_bytes() == b"x" * SIZE
    assert inode(three[0]) == inode(three[2])


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    equal_files = importlib.import_module("nett.store.equal_files")

    def growing(fd: int, size: int | None = None) -> str:
        if os.fstat(fd).st_ino == inode(three[1]):
            with three[1].open("ab") as file:
                file.write(b"more")
        return open_sha256(fd, size)

    monkeypatch.setattr(equal_files, "open_sha256", growing)
    done = run(tmp_path)
    assert "has changed since it was read" in reasons(done)[str(three[1])]
    assert three[1].read_bytes().endswith(b"more") and inode(three[0]) == inode(three[2])


def test_gone_or_another_file_by_now(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        three[1].unlink()
        os.rename(tmp_path / "c", tmp_path / "e")
        (tmp_path / "c").symlink_to(tmp_path / "e")

    with during(monkeypatch, three[1], act), pytest.raises(Refused, match="nothing was linked"):
        run(tmp_path)
    assert not three[1].exists() and (tmp_path / "c").is_symlink()
    assert inode(tmp_path / "e" / "model.safetensors") != inode(three[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_owner(tmp_path: Path, three: list[Path]) -> None:
    os.chown(three[1], 1234, 1234)
    refused(tmp_path, three, "has another owner (1234:1234)")


def test_other_permissions(tmp_path: Path, three: list[Path]) -> None:
    three[1].chmod(0o600)
    refused(tmp_path, three, "has other permissions (600)")


def test_another_access_list(tmp_path: Path, three: list[Path]) -> None:
    """One that lets user 1234 read, as the kernel stores it: version 2, entries of tag, rights, id."""
    import struct

    rows = [(1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    blob = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *row) for row in rows)
    if not settable(three[1], "system.posix_acl_access", blob):
        pytest.skip("no access lists here")
    refused(tmp_path, three, "another access list (ACL)")


def test_other_attributes(tmp_path: Path, three: list[Path]) -> None:
    if not settable(three[1], "user.origin", b"x"):
        pytest.skip("no extended attributes here")
    refused(tmp_path, three, "another attribute user.origin")


@pytest.fixture
def immutable(three: list[Path]) -> Iterator[None]:
    import fcntl
    import struct

    def mark(flags: int) -> None:
        with three[1].open("rb") as file:
            fcntl.ioctl(file, 0x40086602, struct.pack("=q", flags))

    try:
        mark(0x10)
    except OSError:
        pytest.skip("this user or file system does not mark files immutable")
    yield
    mark(0)


@pytest.mark.usefixtures("immutable")
def test_immutable(tmp_path: Path, three: list[Path]) -> None:
    """It is kept rather than replaced, and as a hardlink of it is not allowed either, the other two go together."""
    done = run(tmp_path)
    assert "is marked immutable" in reasons(done)[str(three[0])]
    assert inode(three[0]) == inode(three[2]) != inode(three[1])


def test_names_outside(tmp_path: Path, three: list[Path]) -> None:
    """Freeing it would take all of its names; so it is kept, and the others become names of it."""
    os.link(three[1], tmp_path / "outside")
    done = run(*(p.parent for p in three))
    assert done["groups"][0]["kept"] == str(three[1]) and len({inode(p) for p in three}) == 1


def test_two_with_names_outside(tmp_path: Path, three: list[Path]) -> None:
    for path in three[:2]:
        os.link(path, tmp_path / f"outside of {path.parent.name}")
    done = run(*(p.parent for p in three))
    assert "a further name outside the given folders" in reasons(done)[str(three[1])]
    assert inode(three[0]) == inode(three[2]) != inode(three[1])


def test_as_many_names_as_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit on the first goes to a second; a limit that shows only in the act is a refusal."""
    from nett.store import obstacles

    monkeypatch.setattr(obstacles, "link_limit", lambda _: 3)
    paths = [write(tmp_path / f"f{i}") for i in range(7)]
    run(tmp_path)
    assert sorted(p.stat().st_nlink for p in paths) == [1, 3, 3, 3, 3, 3, 3]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(obstacles, "link_limit", lambda _: 99)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(Refused, match="as many names as its file system allows; nothing was linked"):
        run(tmp_path)
    assert sorted(p.stat().st_nlink for p in paths) == [1, 3, 3, 3, 3, 3, 3]


def test_another_file_system(tmp_path: Path, three: list[Path]) -> None:
    there = Path("/dev/shm")
    if not os.access(there, os.W_OK) or there.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    far = there / f"nett-{os.getpid()}"
    try:
        write(far / "model.safetensors")
        done = run(tmp_path, far)
        assert "lies on another file system than" in reasons(done)[str(far / "model.safetensors")]
        assert len({inode(p) for p in three}) == 1
    finally:
        shutil.rmtree(far)


def test_disk_full(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a clone is made: refused, nothing left; while the journal is written: stopped before the act."""
    fake = FakeReflinks().install(sharing, monkeypatch.setattr)
    before = contents(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def tried(target: int, source: int) -> None:
        if os.fstat(target).st_nlink:  # not the nameless file that only tries
            full()
        fake.clone(target, source)

    monkeypatch.setattr(sharing, "clone", tried)
    with pytest.raises(Refused, match="no space is left on its file system; nothing was linked"):
        run(tmp_path, hardlink=False)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert contents(tmp_path) == before and len(partition(tmp_path)) == 4
    assert not list(tmp_path.glob("?/.nett-link-*"))


# What is left alone.
def test_a_hub_cache_stays_as_it_is(tmp_path: Path) -> None:
    """Repositories with links, with real files, and the blobs that repositories share; under a folder that was given,
    or given themselves; while what lies beside is linked."""
    hub = tmp_path / "hub"
    repo = hub / "models--org--name"
    blob = write(repo / "blobs" / ("ab" * 32))
    (repo / "snapshots" / "c0ffee").mkdir(parents=True)
    (repo / "snapshots" / "c0ffee" / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    write(repo / "snapshots" / "c0ffee" / "copied.safetensors")
    shared = write(hub / "blobs" / "cd" / ("cd" * 32))
    write(hub / "blobs" / "cd" / f"{'cd' * 32}.refs", seed=3)
    (repo / "blobs" / ("cd" * 32)).symlink_to(f"../../blobs/cd/{shared.name}")
    write(hub / "datasets--org--data" / "blobs" / ("ab" * 32))
    beside = [write(tmp_path / "mine" / n) for n in ("x", "y")]
    before = {p: state(p) for p in hub.rglob("*")}
    done = run(tmp_path)
    assert {p: state(p) for p in hub.rglob("*")} == before
    assert inode(beside[0]) == inode(beside[1]) and len(done["groups"]) == 1
    assert any("Hugging Face hub cache" in n and str(hub) in n for n in done["notes"])
    for inside in (hub, repo / "snapshots" / "c0ffee", repo / "blobs", hub / "blobs", hub / "blobs" / "cd"):
        again = run(inside, apply=False)
        assert again["groups"] == [] and any("Hugging Face hub cache" in n for n in again["notes"]), inside
    assert {p: state(p) for p in hub.rglob("*")} == before


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_users_hub_cache_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "c"))
    inside = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    for name in ("x", "y"):
        write(tmp_path / "c" / inside / name)
    assert run(tmp_path)["groups"] == []


def test_files_of_git_and_of_nett_stay_as_they_are(tmp_path: Path) -> None:
    """Objects of git, outputs that are being written, stores, receipts; and downloads that are not finished."""
    for folder in ("r/.git/lfs", ".out.nett-partial", ".out.nett-replaced", "x/.nett-link", "x/.nett-verify-1"):
        write(tmp_path / folder / "f")
    for part in ("HEAD", "refs/x", "objects/f"):
        write(tmp_path / "bare.git" / part)
    for part in ("nett.json", "objects/f", "models/m"):
        write(tmp_path / "store" / part)
    for name in ("a.safetensors.incomplete", "a.gguf.part", "sha256-00-partial", "sha256-00-partial-3"):
        write(tmp_path / "down" / name)
    done = run(tmp_path, apply=False)
    assert done["groups"] == [] and done["refused"] == []
    notes = "\n".join(done["notes"])
    assert "of git" in notes and "of a store of nett" in notes and "nett's own" in notes
    assert "4 unfinished downloads" in notes


def test_links_out_of_the_tree_and_in_circles(tmp_path: Path) -> None:
    outside, root = write(tmp_path / "outside" / "f"), tmp_path / "root"
    write(root / "f")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(outside)
    (root / "round").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "nowhere").symlink_to("gone")
    os.mkfifo(root / "pipe")
    assert run(root)["groups"] == [] and outside.stat().st_nlink == 1
    assert len(run(root, root / "round", tmp_path / "outside")["groups"][0]["copies"]) == 1  # named twice, seen once


def test_small_and_empty_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, size=0)
        write(tmp_path / "s" / name, size=999)
    assert link.link([str(tmp_path)])["groups"] == []
    assert link.link([str(tmp_path)], min_size="1kB")["groups"] == []
    assert len(run(tmp_path, apply=False)["groups"]) == 1


def test_files_of_equal_size_and_samples_that_differ_between(tmp_path: Path) -> None:
    blob = bytearray(write(tmp_path / "a", size=1_000_000).read_bytes())
    blob[200_000] ^= 1
    (tmp_path / "b").write_bytes(blob)
    assert run(tmp_path)["groups"] == []


def test_sparse_files(tmp_path: Path) -> None:
    """A gigabyte of holes frees what it takes, and comes back with its holes."""
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.seek(30_000_000)
            file.write(b"x" * 100_000)
            file.truncate(100_000_000)
    taken = (tmp_path / "b").stat().st_blocks * 512
    assert taken < 1_000_000
    done = run(tmp_path)
    assert done["bytes_freed"] == taken and inode(tmp_path / "a") == inode(tmp_path / "b")
    separated(Path(done["receipt"]))
    assert inode(tmp_path / "a") != inode(tmp_path / "b")
    assert (tmp_path / "b").stat().st_blocks * 512 <= 2 * taken
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b")


def test_thousands_of_small_files(tmp_path: Path) -> None:
    for i in range(2000):
        folder = tmp_path / str(i % 30)
        folder.mkdir(exist_ok=True)
        (folder / str(i)).write_bytes(b"%04d" % (i % 100) * 10)
    began = time.process_time()
    plan = run(tmp_path, apply=False)
    assert time.process_time() - began < 5
    assert len(plan["groups"]) == 100 and len(plan["edges"]) == 1900


@pytest.mark.parametrize(
    "name", ["line\nbreak", "tab\tand 'quote'", "日本語 — é", "-rf", b"\xff\xfe.bin".decode(errors="surrogateescape")]
)
def test_names(tmp_path: Path, name: str) -> None:
    before = {str(write(tmp_path / d / name)) for d in ("a", "b")}
    words = ["store", "link", str(tmp_path), "--min-size", "1"]
    json.loads(nett(*words, "--json").succeeded().out)
    said = nett(*words, "--apply", "--hardlink").succeeded()
    said.out.encode()
    assert all(line.startswith(("kept ", "  hardlink", "1 file", "Receipt", "Undo")) for line in said.out.splitlines())
    assert inode(tmp_path / "a" / name) == inode(tmp_path / "b" / name)
    nett("verify", str(tmp_path / ".nett-link")).succeeded()
    nett("restore", str(tmp_path / ".nett-link")).succeeded()
    assert set(contents(tmp_path)) == before and len(partition(tmp_path)) == 2


# Undoing and checking.
def test_edited_in_place_after_linking(tmp_path: Path, three: list[Path]) -> None:
    """verify names it; restore cannot know which was meant, says so, and goes on with the others."""
    others = [write(tmp_path / n / "other", seed=7) for n in ("a", "b")]
    done = run(tmp_path)
    with three[1].open("r+b") as file:
        file.write(b"edited")
    nett("verify", done["receipt"]).failed(4, "1 of 3 checks failed")
    nett("restore", done["receipt"]).failed(4, "edited in place", "1 file is separate again")
    assert inode(others[0]) != inode(others[1])
    assert three[0].read_bytes()[:6] == b"edited" and inode(three[0]) == inode(three[1])


def test_replaced_or_removed_after_linking(tmp_path: Path, three: list[Path]) -> None:
    done = run(tmp_path)
    three[0].unlink()
    said = nett("verify", done["receipt"]).succeeded().out
    assert "1 are not there any more" in said
    write(tmp_path / "new", seed=9).replace(three[1])
    said = nett("restore", done["receipt"]).succeeded().out
    assert "is another file by now" in said and "0 files" in said
    assert three[1].read_bytes() == write(tmp_path / "new", seed=9).read_bytes() and not three[0].exists()


def test_kept_at_first_and_linked_later(tmp_path: Path, three: list[Path]) -> None:
    """Two runs, in the second of which the file that was kept gives way to an older one: restored in reverse."""
    before = partition(tmp_path)
    run(three[1].parent, three[2].parent, receipt=tmp_path / "r")
    os.utime(three[0], ns=(1, 1))
    os.link(three[0], f"{three[0]}.2")
    os.link(three[0], f"{three[0]}.3")
    run(tmp_path, receipt=tmp_path / "r")
    assert len({inode(p) for p in three}) == 1
    separated(tmp_path / "r")
    assert {
        frozenset(x for x in g if x[-2:] not in (".2", ".3") and f"{tmp_path}/r/" not in x) for g in partition(tmp_path)
    } - {frozenset()} == before


def test_no_room_to_restore(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path)
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda p: os.statvfs_result([*real(p)[:4], 1, *real(p)[5:]]))
    nett("restore", done["receipt"]).failed(3, "are free there", "separate files need")
    assert len({inode(p) for p in three}) == 1


def test_what_does_not_apply_to_a_restore(tmp_path: Path, three: list[Path]) -> None:
    receipt = run(tmp_path)["receipt"]
    nett("restore", receipt, "--out", str(tmp_path / "x")).failed(2, "--out does not apply")
    nett("restore", receipt, "--task", "x").failed(2, "--task does not apply")


def test_the_receipt_lies_where_it_is_told(tmp_path: Path, three: list[Path]) -> None:
    place = tmp_path / "r" / "of linking"
    words = ["store", "link", str(tmp_path), "--min-size", "1", "--receipt"]
    planned = json.loads(nett(*words, str(place), "--json").succeeded().out)
    assert f"--receipt '{place}'" in planned["edges"][0]["command"] and not place.exists()
    write(tmp_path / "full" / "x", seed=4)
    nett(*words, str(tmp_path / "full"), "--apply", "--hardlink").failed(3, "holds other things", "--receipt")
    assert len({inode(p) for p in three}) == 3
    nett(*words, str(place), "--apply", "--hardlink").succeeded()
    nett("verify", str(place)).succeeded()
    receipt = read_receipt(place)
    assert receipt["bytes_before"] - receipt["bytes_after"] == receipt["figures"]["bytes_freed"] > 0
    assert receipt["figures"]["hardlinks"] == 2 and len(receipt["edges"]) == 2
    assert not (tmp_path / ".nett-link").exists()


def test_one_at_a_time(tmp_path: Path, three: list[Path]) -> None:
    from nett.store.link_record import LinkRecord

    done = run(tmp_path)
    with LinkRecord(Path(done["receipt"])):
        write(tmp_path / "e" / "m")
        with pytest.raises(Refused, match="another nett is linking or restoring"):
            run(tmp_path)
        with pytest.raises(Refused, match="another nett"):
            separated(Path(done["receipt"]))
    assert len(run(tmp_path)["groups"]) == 1


def test_a_changed_journal_is_caught(tmp_path: Path, three: list[Path]) -> None:
    journal = Path(run(tmp_path)["receipt"]) / "pairs.jsonl"
    journal.write_text(journal.read_text().replace("hardlink", "reflink"))
    nett("verify", str(journal.parent)).failed(4, "pairs.jsonl")


def test_words_that_are_off(tmp_path: Path) -> None:
    for error, assets, part in (
        (UsageError, [], "name at least one folder"),
        (Refused, [str(tmp_path / "gone")], "there is no such folder"),
        (Refused, [str(write(tmp_path / "file"))], "is not a folder"),
    ):
        with pytest.raises(error, match=part):
            link.link(assets)
    with pytest.raises(NettError, match="is not a size"):
        link.link([str(tmp_path)], min_size="much")
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)

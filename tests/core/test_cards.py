"""Cards from source text, without importing it; the index that spares reading twice, and never lies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nett
from nett.core import cards
from nett.core.cards import PACKAGE, all_cards, doc_sections, engine_options, find_card
from nett.core.errors import NettError, UsageError
from support.forge import forge

GOOD = '''"""A method."""

import no_such_module_anywhere  # proof that nothing is imported

from nett.core.registry import Between, Tunable, method


@method(papers=["P01", "P02"], title="Good", grain="tensor", guarantee="exact", kind="measure", needs=["base"], identity={"n": 1})
def good(
    base: Array,
    tuned: Sequence[Array],
    *,
    n: Annotated[int, Between(0, 9, open_high=True)] = 3,
    rate: Annotated[float | Sequence[float], Between(0, 1), Tunable((0.1, 0.5))] = 0.5,
    how: Literal["one-way", "two-way"] = "one-way",
    name: str | None = None,
    folder: Path | None = None,
    flag: bool = False,
    must: float,
) -> Array:
    """Does a thing
    over two lines.

    More of it.
    Formula: a = b: c
    Args:
        n: how many;
            on two lines.
        rate, how: described together.
    When to use: always.
    Source: P01, section 2.
    """
'''


def package(folder: Path, **files: str) -> Path:
    """A package of one room, made of sources."""
    for name, text in files.items():
        room, _, stem = name.rpartition("__")
        place = folder / "pack" / (room or "merge") / f"{stem}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder / "pack"


def test_everything_is_read_and_nothing_run(tmp_path: Path) -> None:
    (card,) = all_cards(package(tmp_path, good=GOOD))
    assert (card.room, card.name, card.module, card.title) == ("merge", "good", "pack.merge.good", "Good")
    assert (card.papers, card.grain, card.guarantee, card.kind) == (("P01", "P02"), "tensor", "exact", "measure")
    assert card.operands == ("base", "tuned") and card.needs == ("base",) and card.identity == {"n": 1}
    assert card.view({}) == "whole"
    assert card.summary == "Does a thing over two lines."
    assert card.sections["Formula"] == "a = b: c" and card.sections["When to use"] == "always."
    n, rate, how, name, folder, flag, must = card.parameters
    assert (n.type, n.default, n.low, n.high, n.open_high, n.range) == ("int", 3, 0, 9, True, "0 <= n < 9")
    assert n.description == "how many; on two lines."
    assert (rate.type, rate.many, rate.grid, rate.range) == ("float", True, (0.1, 0.5), "0 <= rate <= 1")
    assert (how.choices, how.range) == (("one-way", "two-way"), "one-way | two-way")
    assert rate.description == how.description == "described together."
    assert (name.type, name.optional, name.default) == ("str", True, None)
    assert (folder.type, folder.optional) == ("path", True)
    assert (flag.type, flag.default, flag.required) == ("bool", False, False)
    assert must.required and must.default is None


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('title="Good"', "title=TITLE", "must be literals"),
        ("def good(", "def bad(", "must stand in a file of its name"),
        ("flag: bool = False", "flag = False", "'flag' has no type"),
        ("flag: bool = False", "flag: dict[str, int] = None", "dict[str, int] is not one that options can have"),
        ("flag: bool = False", "flag: Annotated[int, Gt(3)] = 4", "Gt(3) is not a constraint"),
        ("flag: bool = False", "flag: int | str = 4", "int | str is not one"),
    ],
)
def test_what_cannot_be_a_card_is_said_with_its_line(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in GOOD
    with pytest.raises(NettError) as caught:
        all_cards(package(tmp_path, good=GOOD.replace(old, new)))
    assert part in str(caught.value) and "merge/good.py:" in str(caught.value)


def test_helpers_protocols_and_dunders_are_no_methods(tmp_path: Path) -> None:
    found = package(
        tmp_path,
        good=GOOD,
        helper="def helper(): ...",
        protocol=GOOD,
        __init__=GOOD,
        weights__prune=GOOD.replace("good", "prune"),
    )
    (found / "merge" / "__pycache__").mkdir()
    (found / "merge" / "__pycache__" / "x.py").write_text("syntax error(")
    assert [c.key for c in all_cards(found)] == ["merge/good", "weights/prune"]


def test_sub_folders_belong_to_their_top_room(tmp_path: Path) -> None:
    folder = package(tmp_path, good=GOOD) / "weights" / "prune"
    folder.mkdir(parents=True)
    (folder / "good.py").write_text(GOOD)
    assert [(c.room, c.module) for c in all_cards(tmp_path / "pack")] == [
        ("merge", "pack.merge.good"),
        ("weights", "pack.weights.prune.good"),
    ]


def test_index_is_written_used_and_refreshed(tmp_path: Path) -> None:
    """By content: a touched file is not read again, a changed one is, whatever its clock says."""
    folder = package(tmp_path, good=GOOD)
    file, index = folder / "merge" / "good.py", folder / "_cards.json"
    first = all_cards(folder)
    stored = index.read_bytes()
    mark = json.loads(stored)
    mark["files"]["merge/good.py"]["cards"][0]["title"] = "From the index"
    index.write_text(json.dumps(mark))
    assert all_cards(folder)[0].title == "From the index"
    os.utime(file, (2**31, 2**31))
    assert all_cards(folder)[0].title == "From the index"
    before = file.stat()
    file.write_text(GOOD.replace('"Good"', '"Best"'))
    os.utime(file, (before.st_atime, before.st_mtime))  # same clock, same size
    assert all_cards(folder)[0].title == "Best"
    file.unlink()
    assert all_cards(folder) == []
    file.write_text(GOOD)
    assert all_cards(folder) == first and index.read_bytes() == stored


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 0, "files": {}}',
        '{"version": 4}',
        '{"version": 4, "files": {"merge/good.py": {}}}',
        '{"version": 4, "files": []}',
    ],
)
def test_a_broken_index_is_made_anew(tmp_path: Path, content: str) -> None:
    folder = package(tmp_path, good=GOOD)
    expected = all_cards(folder)
    (folder / "_cards.json").write_text(content)
    assert all_cards(folder) == expected
    assert json.loads((folder / "_cards.json").read_text())["files"]


def test_read_only_package_uses_the_users_cache(tmp_path: Path) -> None:
    """As an unprivileged user: the index goes to the cache folder, or nowhere, and the cards are right each time."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    folder = package(tmp_path, good=GOOD)
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    for home in (cache, tmp_path / "nowhere"):
        for _ in range(2):
            found = forge().run("support.work:cards_as_nobody", package=str(folder), cache=str(home))
            assert found == ["merge/good"]
    assert not (folder / "_cards.json").exists()
    (index,) = (cache / "nett").glob("*.json")
    before = index.stat().st_mtime_ns
    forge().run("support.work:cards_as_nobody", package=str(folder), cache=str(cache))
    assert index.stat().st_mtime_ns == before  # used, not written again


def test_stale_index_of_a_read_only_package(tmp_path: Path) -> None:
    """An index that came with the package and no longer fits: the user's takes its part, and is written once."""
    folder = package(tmp_path, good=GOOD)
    all_cards(folder)
    (folder / "merge" / "good.py").write_text(GOOD.replace('"Good"', '"Best"'))
    stale = (folder / "_cards.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.setattr(
            cards,
            "_write_atomically",
            lambda place, blob, real=cards._write_atomically: place.parent != folder and real(place, blob),
        )
        assert all_cards(folder)[0].title == "Best"
        (index,) = (tmp_path / "cache" / "nett").glob("*.json")
        before = index.stat().st_mtime_ns
        assert all_cards(folder)[0].title == "Best"
        assert index.stat().st_mtime_ns == before and (folder / "_cards.json").read_bytes() == stale


def test_installed_index_is_current() -> None:
    """The index beside the package says what the sources say."""
    fresh = all_cards(PACKAGE)
    stored = json.loads((PACKAGE / "_cards.json").read_bytes())
    assert [r["name"] for e in stored["files"].values() for r in e["cards"]] == [c.name for c in fresh]


def test_a_copied_package_has_its_own_index(tmp_path: Path) -> None:
    """Nothing in the index depends on where the package lies."""
    shutil.copytree(PACKAGE, tmp_path / "nett", ignore=shutil.ignore_patterns("__pycache__"))
    before = (tmp_path / "nett" / "_cards.json").read_bytes()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = "import nett, nett.core.cards as c; print(nett.__file__); print(len(c.all_cards()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    where, count = done.stdout.split()
    assert where.startswith(str(tmp_path)) and int(count) == len(all_cards())
    assert (tmp_path / "nett" / "_cards.json").read_bytes() == before


def test_find_card() -> None:
    assert find_card("ties").key == find_card("merge/ties").key == find_card("ties", room="merge").key == "merge/ties"
    assert find_card("tall-masks").name == "tall_masks"
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        find_card("tise")
    with pytest.raises(UsageError, match="no method is called"):
        find_card("kitchen/ties")


def test_one_name_in_two_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = all_cards(package(tmp_path, good=GOOD, weights__good=GOOD))
    monkeypatch.setattr(cards, "all_cards", lambda: pair)
    with pytest.raises(UsageError, match="names 2 methods: merge/good, weights/good"):
        find_card("good")
    assert find_card("weights/good").room == "weights"


def test_engine_options_are_the_signature() -> None:
    import inspect

    from nett.merge import engine

    for name in ("run", "recipe"):
        keyword_only = {
            p.name: p for p in inspect.signature(getattr(engine, name)).parameters.values() if p.kind is p.KEYWORD_ONLY
        }
        options = engine_options("merge", name)
        assert [o.name for o in options] == list(keyword_only)
        for option in options:
            assert option.description
            assert option.required == (keyword_only[option.name].default is inspect.Parameter.empty)
    assert engine_options("merge", "no_such") == () == engine_options("kitchen", "run")


def test_sections() -> None:
    assert doc_sections("One.\n\nTwo.\nArgs:\n    a: b\nNot a section: x\nCost: much") == {
        "about": "One.\n\nTwo.", "Args": "a: b\nNot a section: x", "Cost": "much",
    }  # fmt: skip
    assert doc_sections("") == {}


def test_listing_imports_no_method() -> None:
    code = "import sys; from nett.core.cards import all_cards; all_cards(); print([m for m in sys.modules if m.startswith('nett.merge') or m == 'numpy'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_method_file_has_its_size() -> None:
    """One idea a file: 250 lines at most."""
    for card in all_cards():
        file = Path(nett.__file__).parent.parent / Path(*card.module.split(".")).with_suffix(".py")
        assert len(file.read_text().splitlines()) <= 250, card.key

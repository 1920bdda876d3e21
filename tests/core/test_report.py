"""Pages stand alone, say what they were given, draw to scale, and take any name for text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nett.core.errors import NettError
from nett.core.report import Code, Page, add_edges, receipt_page
from nett.core.report.words import clean
from support.cli import nett
from support.html import assert_self_contained, pictures, words_of
from support.scanning import model, tuned, write

HOSTILE = [
    "<script>alert(1)</script>", "</title><script>x</script>", "'\"><img src=x onerror=alert(1)>", "a&amp;b<b>&lt;",
    "{{ 7*7 }}{% raw %}", "x\" onload=\"alert(1)", "</svg></style><h1>", "<!-- ", "]]>", "\u202egnp.exe", "nul\x00bell\x07",
    "\ud800 lone", "javascript:alert(1)", "http://example.org/x.js", "näme ☃ 模型", "a" * 500,
]  # fmt: skip


def hostile_page() -> Page:
    page = Page(HOSTILE[0], HOSTILE[1])
    page.footer = HOSTILE[2]
    page.contents()
    for name in HOSTILE:
        page.heading(name)
        page.text(name)
        page.verdict(name, "bad")
        page.code(name)
    rows = [[name, Code(name), 3, None] for name in HOSTILE]
    page.table(HOSTILE[:4], rows, caption=HOSTILE[5])
    page.key_values(dict.fromkeys(HOSTILE, HOSTILE[0]))
    page.bars([(n, i, n) for i, n in enumerate(HOSTILE)], title=HOSTILE[0], unit=HOSTILE[0], note=HOSTILE[0])
    page.grouped_bars(HOSTILE, {n: [1.0] * len(HOSTILE) for n in HOSTILE[:3]}, title=HOSTILE[5], unit=HOSTILE[5])
    page.lines(
        {n: [(0, 1, 0.5, 2), (1, 2, 1, 3)] for n in HOSTILE}, title=HOSTILE[0], xlabel=HOSTILE[0], ylabel=HOSTILE[5]
    )
    page.heat(HOSTILE, HOSTILE, [[1.0] * len(HOSTILE)] * len(HOSTILE), title=HOSTILE[0], note=HOSTILE[0])
    page.figure_strip([(n, 1.0) for n in HOSTILE * 2], title=HOSTILE[0], unit=HOSTILE[0], note=HOSTILE[0])
    return page


def test_hostile_names_are_text() -> None:
    html = hostile_page().render()
    parts = assert_self_contained(html)
    for name in HOSTILE[:-1]:
        assert " ".join(clean(name).split()) in parts.text
    assert "49" not in parts.text.replace("499", "")  # {{ 7*7 }} was not worked out
    assert not re.search("[\x00-\x08\u202e\ud800]", html)


def hostile_models(folder: Path) -> list[str]:
    """A base and two fine-tunes in folders, with tensors, of names that want to be markup."""
    names = [n.replace("\ud800", "").replace("\x00", "") for n in HOSTILE[:8]]
    base = {n: np.random.default_rng(i).standard_normal((8, 6)).astype(np.float32) for i, n in enumerate(names)}
    base["layers.0." + names[0]] = base[names[1]]
    others = [tuned(base, seed, share=0.1) for seed in (1, 2)]
    folders = [folder / "<script>base", folder / "a\"b'", folder / "m&<b>"]
    return [write(f, m) for f, m in zip(folders, (base, *others), strict=True)]


def test_hostile_models_from_a_merge_a_scan_and_a_diff(tmp_path: Path) -> None:
    base, *others = hostile_models(tmp_path)
    nett(
        "merge", "ties", *others, "--base", base, "--density", "0.5", "--out", str(tmp_path / "ties"), "--no-speak"
    ).succeeded()
    nett("merge", "tall_masks", *others, "--base", base, "--out", str(tmp_path / "tall"), "--no-speak").succeeded()
    nett("scan", base, *others, "--html", str(tmp_path / "scan.html")).succeeded()
    nett("diff", base, others[0], "--html", str(tmp_path / "diff.html")).succeeded()
    for page in ("ties/nett.html", "tall/nett.html", "scan.html", "diff.html"):
        parts = assert_self_contained((tmp_path / page).read_text(encoding="utf-8"))
        assert "<script>base" in parts.text, page
    for page in ("scan.html", "diff.html"):
        assert "<script>alert(1)</script>" in assert_self_contained((tmp_path / page).read_text()).text


def test_page_of_a_merge(tmp_path: Path) -> None:
    """Sizes before and after, a bar a tensor, checks, parameters, files with their hashes, the commands."""
    shapes = {f"model.layers.{i}.{role}.weight": (12, 8) for i in range(6) for role in ("q", "k", "v")}
    base = model(shapes=shapes)
    paths = [write(tmp_path / "base", base), *(write(tmp_path / f"m{i}", tuned(base, i)) for i in (1, 2))]
    nett("merge", "ties", *paths[1:], "--base", paths[0], "--out", str(tmp_path / "out"), "--no-speak").succeeded()
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    html = (tmp_path / "out" / "nett.html").read_text(encoding="utf-8")
    parts = assert_self_contained(html)
    by_name = {p.attrib["aria-label"].split(":")[0]: p for p in pictures(html)}
    sizes = words_of(by_name["Bytes on disk"])
    assert {"base", "m1", "m2", "before", "after"} <= set(sizes)
    strip = by_name["Relative change of each tensor"]
    bars = [e for e in strip.iter("path") if e.find("title") is not None]
    assert len(bars) == len(shapes)
    told = {t["name"]: t["relative_change"] for t in receipt["tensors"]}
    for bar in bars:
        name, _, value = (bar.findtext("title") or "").partition(": ")
        assert float(value) == pytest.approx(told[name], rel=1e-3)
    assert words_of(strip)[-7:] == [*(str(i) for i in range(6)), "layer"]  # below the bars
    for entry in (*receipt["outputs"], *(f for i in receipt["inputs"] for f in i["files"])):
        assert entry["sha256"] in parts.text
    assert "density" in parts.text and "nett verify ." in parts.text
    assert receipt_page(receipt).render() == html  # the page is made of the receipt alone


def test_page_of_a_multi_task_vector_has_a_bar_a_tensor(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.{role}.weight": (12, 8) for i in range(6) for role in ("q", "k", "v")}
    base = model(shapes=shapes)
    paths = [write(tmp_path / "base", base), *(write(tmp_path / f"m{i}", tuned(base, i)) for i in (1, 2))]
    nett(
        "merge", "tall_masks", *paths[1:], "--base", paths[0], "--out", str(tmp_path / "out"), "--no-speak"
    ).succeeded()
    html = (tmp_path / "out" / "nett.html").read_text(encoding="utf-8")
    parts = assert_self_contained(html)
    assert "nett restore . --task m1 --out ../m1" in parts.text
    charts = {p.attrib["aria-label"].split(":")[0] for p in pictures(html)}
    assert {"Distance of each restored task to its original", "Share of ones in each task's mask"} <= charts
    assert {"Share of ones in each tensor's mask", "Relative L2 distance of each tensor"} <= charts
    receipt = json.loads((tmp_path / "out" / "nett.json").read_text())
    overall = sum(t["mask_ones"] for t in receipt["tasks"]) / len(receipt["tasks"])
    assert np.mean([t["mask_ones"] for t in receipt["tensors"]]) == pytest.approx(overall)  # tensors of equal size


def test_quality_before_and_after() -> None:
    rows = [{"model": m, "text": t, "perplexity": p, "kl": 0.1} for m, t, p in
            (("merged", "a", 12.0), ("base", "a", 15.0), ("merged", "b", 9.0), ("base", "b", 10.0))]  # fmt: skip
    html = receipt_page({"quality": rows}).render()
    assert_self_contained(html)
    chart = next(p for p in pictures(html) if p.attrib["aria-label"].startswith("Perplexity"))
    assert {"12", "15", "9", "10", "merged", "base"} <= set(words_of(chart))
    assert "lower is better" in html


def test_failed_checks_come_first_and_are_bad() -> None:
    checks = [{"name": "one", "ok": True, "detail": "fine"}, {"name": "two", "ok": False, "detail": "broken"}]
    parts = assert_self_contained(receipt_page({"checks": checks}).render())
    assert "1 of 2 checks failed: two." in parts.text
    assert parts.text.index("✗ failed") < parts.text.index("✓ passed")
    assert ("p", {"class": "verdict bad"}) in parts.elements


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(["name", "bytes", "path", "ok", "detail", "relative_l2", "mask_ones",
    "relative_change", "model", "text", "perplexity", "files", "sha256", "target", "sources", "command"]), JSON, max_size=5), max_size=3)  # fmt: skip
KEYS = ["room", "method", "title", "papers", "guarantee", "parameters", "inputs", "outputs", "bytes_before",
        "bytes_after", "figures", "edges", "checks", "seconds", "peak_memory_bytes", "tasks", "tensors", "notes",
        "warnings", "quality", "recipe", "created", "nett", "proof", "options"]  # fmt: skip


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(KEYS), JSON | RECORDS, max_size=8))
def test_any_receipt_gives_a_page(receipt: dict[str, Any]) -> None:
    assert_self_contained(receipt_page(receipt).render())


NUMBERS = st.none() | st.floats() | st.integers(-(10**400), 10**400)


@settings(max_examples=30)
@given(st.lists(NUMBERS, max_size=30), st.sampled_from(["", "bytes", "s"]))
def test_any_numbers_give_a_chart(values: list[Any], unit: str) -> None:
    page = Page("t")
    page.bars([(str(i), v) for i, v in enumerate(values)], title="bars", unit=unit)
    page.grouped_bars([str(i) for i in range(len(values))], {"a": values, "b": values[:3]}, title="groups", unit=unit)
    page.lines({"a": list(enumerate(values)), "b": [(v, i, v, v) for i, v in enumerate(values)]}, title="lines")
    page.heat(["r", "s"], [str(i) for i in range(len(values))], [values, values[:2]], title="heat")
    page.figure_strip([(f"layers.{i}.w", v) for i, v in enumerate(values)], title="strip", unit=unit)
    html = page.render()
    assert_self_contained(html)
    for picture in pictures(html):
        wide, high = map(float, picture.attrib["viewBox"].split()[2:])
        assert "nan" not in "".join(v for e in picture.iter() for k, v in e.attrib.items() if k != "aria-label").lower()
        for rectangle in picture.iter("rect"):
            x, y, w, h = (float(rectangle.attrib[k]) for k in ("x", "y", "width", "height"))
            assert w >= 0 and h >= 0 and x + w <= wide + 1 and y + h <= high + 1


def test_bars_are_to_scale() -> None:
    page = Page("t")
    page.bars([("a", 10e6), ("b", 5e6), ("c", 0), ("d", 1)], title="sizes", unit="bytes")
    (picture,) = pictures(page.render())
    wide = [float(r.attrib["width"]) for r in picture.iter("rect")]
    assert wide[1] == pytest.approx(wide[0] / 2, abs=0.2)
    assert len(wide) == 3 and wide[2] == 1  # nothing is not drawn, next to nothing can be seen
    assert words_of(picture) == ["a", "10.0 MB", "b", "5.00 MB", "c", "0 bytes", "d", "1 byte"]


def test_bars_below_zero_go_the_other_way() -> None:
    page = Page("t")
    page.bars([("up", 2.0), ("down", -1.0)])
    (picture,) = pictures(page.render())
    up, down = ({k: float(r.attrib[k]) for k in ("x", "width")} for r in picture.iter("rect"))
    assert down["x"] + down["width"] == pytest.approx(up["x"], abs=0.2)
    assert down["width"] == pytest.approx(up["width"] / 2, abs=0.2)


def test_words_do_not_overlap() -> None:
    """No two labels of a chart with many long names lie on one another, and none leaves the picture."""
    page = Page("t")
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(12)]
    page.bars([(n, i, f"note number {i}") for i, n in enumerate(names)])
    page.grouped_bars(names, {"before": range(12), "after": range(12)}, unit="bytes")
    page.heat(
        [n.rpartition("layers.")[2] for n in names],
        [str(i) for i in range(30)],
        np.arange(360).reshape(12, 30).tolist(),
    )
    page.lines(
        {"a": [(i * 1e6, i / 7) for i in range(40)], "b": [(i * 1e6, -i) for i in range(40)]},
        xlabel="bytes",
        ylabel="loss",
    )
    page.figure_strip([(f"model.layers.{i // 7}.w{i % 7}", i % 7) for i in range(210)])
    from nett.core.report.words import width

    for picture in pictures(page.render()):
        wide = float(picture.attrib["viewBox"].split()[2])
        boxes = []
        for text in picture.findall("text"):
            said = words_of_one(text)
            long, x, y = 0.87 * width(said), float(text.attrib["x"]), float(text.attrib["y"])
            left = x - long * {"end": 1.0, "middle": 0.5}.get(text.attrib.get("text-anchor", "start"), 0.0)
            assert left >= -2 and left + long <= wide + 8, said
            boxes.append((left, y - 9, left + long, y + 2, said))
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]), (a, b)


def words_of_one(text: Any) -> str:
    return " ".join(t for t in [text.text or "", *((p.text or "") for p in text if p.tag == "tspan")] if t)


def test_numbers_that_are_none_are_said() -> None:
    page = Page("t")
    page.bars([("a", float("nan")), ("b", float("inf")), ("c", None)])
    page.table(["x"], [[float("nan")], [float("-inf")], [None], [1234567], [0.00012345], [True]])
    parts = assert_self_contained(page.render())
    for said in ("not a number", "infinite", "−infinite", "–", "1,234,567", "0.0001234", "yes"):
        assert said in parts.text


def test_edges_as_a_table() -> None:
    edge = {"kind": "duplicate_tensor", "target": "m::a", "sources": ["m::b", "c", "d", "e"], "method": None,
            "bytes_freed": 1024, "seconds": None, "error": 0.0, "guarantee": "exact", "command": None}  # fmt: skip
    page = Page("t")
    add_edges(page, [edge, edge | {"command": "nett merge ties --base b"}])
    parts = assert_self_contained(page.render())
    for said in (
        "m::a",
        "from m::b, c, d and 1 more",
        "duplicate tensor",
        "1,024",
        "exact",
        "nett merge ties --base b",
    ):
        assert said in parts.text
    assert "seconds" not in parts.text  # a column that says nothing is left out


def test_long_tables_are_counted() -> None:
    page = Page("t")
    page.table(["n"], [[i] for i in range(100)], most=10)
    assert "… and 90 more" in page.render()


def test_the_same_blocks_give_the_same_page() -> None:
    assert hostile_page().render() == hostile_page().render()


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page("t")
    target = page.write(tmp_path / "page.html")
    assert target.read_text(encoding="utf-8") == page.render() and target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(NettError, match="cannot be written"):
        page.write(tmp_path / "no" / "page.html")
    monkeypatch.setattr(Page, "render", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write(tmp_path / "page.html")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and target.read_text(encoding="utf-8") != ""

"""A page as a browser would take it apart, and what a self-contained page may not hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

_VOID = {"meta", "link", "img", "br", "hr", "input", "base", "embed", "source"}
_FORBIDDEN = {"script", "iframe", "object", "embed", "img", "link", "base", "form", "input", "image", "foreignobject",
              "use", "video", "audio", "a:href", "animate", "set"}  # fmt: skip


class Parts(HTMLParser):
    """Elements with their attributes, the text outside and inside of them; AssertionError where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, (tag, self._open[-3:])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def assert_self_contained(html: str) -> Parts:
    """Well-formed; nothing that runs, loads or leads elsewhere; a policy that forbids it too. Returns the parts."""
    html.encode("utf-8")
    assert html.startswith("<!DOCTYPE html>")
    parts = Parts(html)
    for tag, attributes in parts.elements:
        assert tag not in _FORBIDDEN, (tag, attributes)
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "srcdoc", "action", "style"), (tag, name)
            assert name != "href" or (value or "").startswith("#"), (tag, value)
            assert ":href" not in name
            if name not in ("content", "aria-label"):
                assert "javascript:" not in (value or "").lower() and "://" not in (value or "")
    (policy,) = [a["content"] for t, a in parts.elements if t == "meta" and a.get("http-equiv")]
    assert policy is not None and "default-src 'none'" in policy and "script-src" not in policy
    assert "url(" not in parts.style and "@import" not in parts.style and "://" not in parts.style
    ids = [a["id"] for _, a in parts.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in parts.elements if t == "a"]
    assert all((link or "")[1:] in ids for link in links)
    for picture in pictures(html):
        assert picture.attrib["role"] == "img" and picture.attrib["aria-label"]
    return parts


def pictures(html: str) -> list[ElementTree.Element]:
    """The charts, each parsed as XML."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg .*?</svg>", html, flags=re.S)]


def words_of(picture: ElementTree.Element) -> list[str]:
    """What is written in a chart, in the order of drawing, titles left out."""
    said = []
    for element in picture.iter("text"):
        own = [element.text or ""]
        own += [(part.text or "") if part.tag == "tspan" else "" for part in element]
        said.append(" ".join(t for t in own if t))
    return said

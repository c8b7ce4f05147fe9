"""Reads a report's page as a browser would: its elements, its text, what it would load."""

from __future__ import annotations

from html.parser import HTMLParser

LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "formaction"}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tags: every tag with its attributes, in order.
        headings: the text of every h1 to h6.
        ids: every id.
        text: all text that is shown, in one line.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []  # every element is closed, in its order
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self._words.append(data)
        if self._open and self._open[-1] in ("h1", "h2", "h3", "h4"):
            self.headings[-1] += data

    @property
    def loads(self) -> list[str]:
        """Everything the page refers to but places in itself."""
        found = [
            attributes[name] for _, attributes in self.tags for name in LOADING & attributes.keys() if attributes[name]
        ]
        return [reference for reference in found if not reference.startswith("#")]

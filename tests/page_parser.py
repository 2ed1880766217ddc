"""A strict reader of our HTML pages."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

DOCUMENT_TAGS = {"html", "head", "meta", "link", "title", "style", "body", "main"}
TEXT_TAGS = {
    "h1",
    "h2",
    "h3",
    "h4",
    "p",
    "strong",
    "br",
    "div",
    "span",
    "section",
    "figure",
    "bdi",
    "pre",
    "code",
    "a",
}
LIST_TAGS = {"ul", "ol", "li", "dl", "dt", "dd", "details", "summary"}
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
SVG_TAGS = {"svg", "g", "defs", "path", "use", "text", "clippath", "rect"}
ALLOWED_TAGS = {"script"} | DOCUMENT_TAGS | TEXT_TAGS | LIST_TAGS | TABLE_TAGS | SVG_TAGS
VOID_TAGS = {"meta", "link", "br"}
CELL_TAGS = {"td", "th"}
PIECE_TAGS = {"li", "bdi", "pre"}
SCRIPT = Path(__file__).parent.parent / "reporting" / "templates" / "page.js"


def expected_policy() -> str:
    """No requests, and no script but SCRIPT."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.read_bytes()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"{policy}; script-src 'sha256-{digest}'"


class ParsedPage(HTMLParser):
    """The tags with their attributes, the cells of every table, the text, and the text of each list
    item, name and code block, and the scripts; fails on tags that are not closed in order.

    `named_tables` maps the name of the region around a table to its cells.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.tables = []
        self.named_tables = {}
        self.scripts = []
        self.text = ""
        self.pieces = []
        self.open_tags = []
        self.feed(html)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.tables.append([])
            regions = [attributes for _, attributes in self.tags if "aria-label" in attributes]
            self.named_tables[regions[-1]["aria-label"]] = self.tables[-1]
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in CELL_TAGS:
            self.tables[-1][-1].append("")
        if tag in PIECE_TAGS:
            self.pieces.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if "script" in self.open_tags:
            self.scripts[-1] += data
            return
        self.text += data
        if CELL_TAGS & set(self.open_tags):
            self.tables[-1][-1][-1] += data
        if PIECE_TAGS & set(self.open_tags):
            self.pieces[-1] += data


def check_self_contained(html: str) -> None:
    """No script but ours, no event handler, and no reference that leaves the file."""
    parsed = ParsedPage(html)
    assert parsed.scripts == [SCRIPT.read_text(encoding="utf-8")]
    tags = parsed.tags
    for tag, attributes in tags:
        assert tag in ALLOWED_TAGS
        for name in attributes:
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "xlink:href")
        href = attributes.get("href", "#")
        assert href.startswith("#") or href == "data:,"
        styles = attributes.get("style", "") + attributes.get("clip-path", "")
        assert set(re.findall(r"url\((.)", styles)) <= {"#"}
    style = re.search("<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": expected_policy()}) in tags

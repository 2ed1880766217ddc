"""A strict reader of our HTML pages."""

import re
from html.parser import HTMLParser

DOCUMENT_TAGS = {"html", "head", "meta", "link", "title", "style", "body", "main"}
TEXT_TAGS = {"h1", "h2", "h3", "p", "div", "span", "section", "figure", "bdi", "pre", "code", "a"}
LIST_TAGS = {"ul", "ol", "li", "dl", "dt", "dd", "details", "summary"}
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
SVG_TAGS = {"svg", "g", "defs", "path", "use", "text", "clippath", "rect"}
ALLOWED_TAGS = DOCUMENT_TAGS | TEXT_TAGS | LIST_TAGS | TABLE_TAGS | SVG_TAGS
VOID_TAGS = {"meta", "link"}
CELL_TAGS = {"td", "th"}
PIECE_TAGS = {"li", "bdi", "pre"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class ParsedPage(HTMLParser):
    """The tags with their attributes, the cells of every table, the text, and the text of each list
    item, name and code block; fails on tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.tables = []
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
        if tag == "table":
            self.tables.append([])
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
        self.text += data
        if CELL_TAGS & set(self.open_tags):
            self.tables[-1][-1][-1] += data
        if PIECE_TAGS & set(self.open_tags):
            self.pieces[-1] += data


def check_self_contained(html: str) -> None:
    """No script, no event handler, and no reference that leaves the file."""
    tags = ParsedPage(html).tags
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
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in tags

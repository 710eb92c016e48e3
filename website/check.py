"""Refuses a built site that would ask another server for anything when a page is opened.

``python -m website.check site``
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")


class _Resources(HTMLParser):
    """Collects what a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of a tag that is loaded; a link of a text is not."""
        given = dict(attrs)
        if tag in _LOADED and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(given.get(_LOADED[tag]) or "")
        if "mermaid" in (given.get("class") or "").split():  # the theme loads a script for it
            self.addresses.append("https://unpkg.com/mermaid")


def outside(site: Path) -> list[str]:
    """Return a line for each resource of a page or style that lies on another server."""
    lines = []
    for page in sorted(site.rglob("*.html")):
        resources = _Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        lines += [
            f"{page}: loads {address}"
            for address in resources.addresses
            if re.match(r"(?:https?:)?//", address)
        ]
    for style in sorted(site.rglob("*.css")):
        if _STYLE.search(style.read_text(encoding="utf-8")):
            lines.append(f"{style}: loads from another server")
    return lines


if __name__ == "__main__":
    found = outside(Path(sys.argv[1]))
    sys.exit("\n".join(found) if found else 0)

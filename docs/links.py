"""Every link within the site leads somewhere: ``python docs/links.py FOLDER``; those to other places are listed."""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """One element."""
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(folder: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """A line for each link within the site that leads nowhere."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(folder)}: {link}: no such file"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{path.relative_to(folder)}: {link}: no such place"


def main() -> None:
    """Exit status 1 where a link is broken."""
    folder = Path(sys.argv[1]).resolve()
    # Results that are only linked to are pages of their own making.
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if "_downloads" not in path.parts}
    outside = {link for page in pages.values() for link in page.links if urlsplit(link).netloc}
    print("not looked at:", *sorted(outside), sep="\n  ")
    if found := list(broken(folder, pages)):
        sys.exit("\n".join(found))
    print(f"{sum(len(page.links) for page in pages.values())} links on {len(pages)} pages, none of them broken")


if __name__ == "__main__":
    main()

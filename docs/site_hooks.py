"""What `make docs` adds to the pages of docs/: those that lie elsewhere in the repository, with links made to fit.

README.md becomes the home page, data/README.md the page of the data, CONTRIBUTING.md and CHANGELOG.md pages as well.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "data/README.md": "data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_files(files, config):
    """Adds the pages that lie elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=moved((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes the links of a page of docs/ fit; those of the added ones do already."""
    return markdown if page.file.src_uri in PAGES.values() else moved(markdown, f"docs/{page.file.src_uri}")


def moved(markdown: str, source: str) -> str:
    """Returns a page with its relative links as they are on the site. What the site does not have becomes plain text.

    Args:
        markdown: the page.
        source: its path in the repository.
    """

    def link(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        page = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if page is None or not ((ROOT / target).is_file()):
            return f"](https://example.invalid/{target}){{.missing}}"
        return f"{match[1]}{page}{match[3] or ''}{match[4]}"

    marked = _LINK.sub(link, markdown)
    return re.sub(r"\[([^\]]*)\]\(https://example\.invalid/[^)]*\)\{\.missing\}", r"\1", marked)

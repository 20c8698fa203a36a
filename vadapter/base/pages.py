"""Templates, filled in: HTML pages, each one file that loads nothing else, and Markdown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(
    template: Path,
    content: Mapping[str, Any],
    *,
    markdown: bool = False,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """Fills in a template.

    Args:
        template: its file; it can include others of its folder.
        content: what it uses, by name. What it uses and is not given is an error.
        markdown: the text is put in as it is. In HTML all text is escaped, but what is marked as `Markup`.
        filters: more filters, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=not markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(**content)

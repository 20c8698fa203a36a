"""The pages of the folder `templates`: one HTML file each, which loads nothing else."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vadapter.reports import chart as report_chart


def render(name: str, **content: Any) -> str:
    """Fills in a page. All text that is put in is escaped; what the page asks for and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(style=Markup(report_chart.style()), **content)

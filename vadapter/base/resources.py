"""Where the shipped `gin/` and `data/` folders lie, installed or in a checkout."""

from importlib import resources
from pathlib import Path

from vadapter.base.errors import UserError


def folder(name: str) -> Path:
    """Returns the folder `gin` or `data`: the wheel's `vadapter/_shipped/<name>`, else the checkout's `<name>`.

    Editable installs do not resolve setup.py's `package_dir` mapping, hence the second place.

    Raises:
        UserError: neither place has it, so the installation is broken.
    """
    package = Path(str(resources.files("vadapter")))
    places = [package / "_shipped" / name, package.parent / name]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"The folder {name}/ that ships with vadapter was expected at {places[0]} or {places[1]} and is at neither. "
        "Install vadapter again, from its wheel or with 'pip install -e .' in a checkout."
    )

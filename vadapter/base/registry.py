"""Classes by name: how a class of a user's own module becomes one that vadapter knows."""

from collections.abc import Iterator
from typing import TypeVar

from vadapter.base.errors import UserError

T = TypeVar("T")


class Registry:
    """Classes by name, in the order in which they were registered.

    Args:
        what: what the classes are, for messages, such as "configuration of a model".
    """

    def __init__(self, what: str):
        self.what = what
        self._classes: dict[str, type] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Enters a class under its name and returns it.

        A class of the same module replaces the one that it defined before, so that a cell of a notebook may be run
        twice.

        Raises:
            UserError: a class of another module has the name.
        """
        known = self._classes.get(cls.__name__, cls)
        if known.__module__ != cls.__module__:
            raise UserError(
                f"Two modules register a {self.what} under the name {cls.__name__}: {known.__module__} and "
                f"{cls.__module__}. Rename one of the classes."
            )
        self._classes[cls.__name__] = cls
        return cls

    def __getitem__(self, name: str) -> type:
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[type]:
        return iter(list(self._classes.values()))

    @property
    def names(self) -> list[str]:
        """The registered names."""
        return list(self._classes)

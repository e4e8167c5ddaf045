"""One registry class for everything that has a name on the command line."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from isoflop.errors import UnknownNameError

T = TypeVar("T")
U = TypeVar("U", bound=Callable)


class Registry(Generic[T]):
    """Maps short names to entries, in order of registration.

    Args:
        noun: What the entries are, for error messages, such as ``"transform"``.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator that registers a class or function under `name`."""

        def add(entry: U) -> U:
            self.add(name, entry)  # pyright: ignore[reportArgumentType]
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Register an entry that is no class or function."""
        assert name not in self._entries, f"{self.noun} {name!r} is registered twice"
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: No entry has that name; the message lists those that exist.
        """
        if name in self._entries:
            return self._entries[name]
        close = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(self._entries)
        raise UnknownNameError(f"Unknown {self.noun} {name!r}.{hint} Known: {known}.")

    def name_of(self, entry: object) -> str:
        """Return the name under which `entry` (or, for an instance, its class) is registered."""
        for name, known in self._entries.items():
            if known is entry or known is type(entry):
                return name
        raise UnknownNameError(f"{entry!r} is not a registered {self.noun}.")

    def names(self) -> list[str]:
        """Return all names, in order of registration."""
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over names and entries."""
        return iter(self._entries.items())

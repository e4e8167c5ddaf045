"""One registry class for everything that has a name on the command line."""

import difflib
import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Generic, TypeVar

from isoflop.errors import IsoflopError, UnknownNameError

T = TypeVar("T")
U = TypeVar("U", bound=Callable)
_Name = TypeVar("_Name", bound=str)


def names_in(value: object, argument: str) -> tuple[str, ...]:
    """Return names or patterns as a tuple; a string is one of them.

    Raises:
        IsoflopError: The value of that argument is neither a string nor a collection of strings.
    """
    if isinstance(value, str):
        return (value,)
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    for name in names:
        if not isinstance(name, str):
            raise IsoflopError(
                f"{argument} must be a string or a sequence of strings, not {value!r}."
            )
    return names  # pyright: ignore[reportReturnType]


def find_name(name: str, known: Collection[str]) -> str | None:
    """Return which of the known names `name` is, or None.

    Upper and lower case, hyphens, underscores and spaces make no difference, unless several names
    differ in nothing else.
    """
    if name in known:
        return name
    same = [other for other in known if _plain(other) == _plain(name)]
    return same[0] if len(same) == 1 else None


def known_name(name: Any, known: Iterable[_Name], noun: str) -> _Name:
    """Return which of the known names `name` is, whose case does not matter.

    Args:
        name: What was given.
        known: All names.
        noun: What the names are of, for the error message, such as ``"bound"``.

    Raises:
        UnknownNameError: It is none of them; the message lists them.
    """
    known = list(known)
    found = find_name(name, known)
    if found is None:
        raise UnknownNameError(
            f"Unknown {noun} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    return found  # pyright: ignore[reportReturnType]


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the question whether the most similar of the known names is meant, or nothing."""
    plain = {_plain(other): other for other in known}
    close = difflib.get_close_matches(_plain(name), plain, n=1)
    return f" Did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: object) -> str:
    return "".join(c for c in str(name).casefold() if c not in "-_ ")


class Registry(Generic[T]):
    """Maps short names to entries, in order of registration.

    Args:
        noun: What the entries are, for error messages, such as ``"transform"``.
        plugins: Group of entry points by which other packages register entries; their modules are
            imported when a name is looked up that is not registered yet.
    """

    def __init__(self, noun: str, plugins: str | None = None) -> None:
        self.noun = noun
        self._plugins = plugins
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[U], U]:
        """Decorator that registers a class or function under `name`."""

        def add(entry: U) -> U:
            self.add(name, entry)  # pyright: ignore[reportArgumentType]
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Register an entry that is no class or function.

        Raises:
            IsoflopError: The name is taken by another entry. One of the same qualified name, such as a
                class of a notebook cell that is run again, takes its place.
        """
        if name in self._entries and not _same(self._entries[name], entry):
            taken = getattr(self._entries[name], "__qualname__", repr(self._entries[name]))
            raise IsoflopError(
                f"The {self.noun} {name!r} is registered already, as {taken}. Choose another name."
            )
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry called `name`, whose case does not matter; a class goes by its own name too.

        Raises:
            UnknownNameError: No entry has that name; the message lists those that exist.
        """
        if name not in self._entries:
            self._import_plugins()
        own = {getattr(entry, "__name__", key): key for key, entry in self._entries.items()}
        found = find_name(name, self._entries) or own.get(find_name(name, own) or "")
        if found is not None:
            return self._entries[found]
        hint = did_you_mean(name, self._entries) or did_you_mean(name, own)
        known = ", ".join(self._entries)
        raise UnknownNameError(f"Unknown {self.noun} {name!r}.{hint} Known: {known}.")

    def name_of(self, entry: object) -> str:
        """Return the name under which `entry` (or, for an instance, its class) is registered."""
        for name, known in self._entries.items():
            if _same(known, entry) or _same(known, type(entry)):
                return name
        raise UnknownNameError(f"{entry!r} is not a registered {self.noun}.")

    def names(self) -> list[str]:
        """Return all names, in order of registration."""
        self._import_plugins()
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over names and entries."""
        self._import_plugins()
        return iter(self._entries.items())

    def _import_plugins(self) -> None:
        group, self._plugins = self._plugins, None
        if group is None:
            return
        for plugin in importlib.metadata.entry_points(group=group):
            try:
                plugin.load()
            except Exception as error:
                raise IsoflopError(
                    f"The plug-in {plugin.name!r} of {group} ({plugin.value}) cannot be imported: "
                    f"{error}. Repair or uninstall it."
                ) from error


def _same(one: Any, other: Any) -> bool:
    """Tell whether two entries are the same, or one definition that was run twice, as in notebooks."""
    if one is other:
        return True
    names = [
        (getattr(entry, "__module__", None), getattr(entry, "__qualname__", None))
        for entry in (one, other)
    ]
    return names[0] == names[1] and names[0][1] is not None

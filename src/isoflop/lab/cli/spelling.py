"""Names on the command line, in upper or lower case; wrong ones are told of in one line."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from isoflop.registry import known_name


def spelt(args: Sequence[str], commands: Any) -> list[str]:
    """Return a command line with the names of commands and choices as they are known.

    Args:
        args: The command line, without the program.
        commands: Union of the classes of all commands, each annotated with `tyro.conf.subcommand`.

    Raises:
        UnknownNameError: A command, or a value of an option that has choices, is none of them.
    """
    args = list(args)
    if not args or args[0].startswith("-"):
        return args
    kinds = _named(commands)
    name = known_name(args[0], kinds, "command")
    fields = dataclasses.fields(kinds[name])
    inner = next((field.type for field in fields if _named(field.type)), None)
    if inner is not None:
        return [name, *spelt(args[1:], inner)]
    return [name, *_with_choices(args[1:], {field.name: field.type for field in fields})]


def _with_choices(args: Sequence[str], types: dict[str, Any]) -> list[str]:
    """Return options and their values, those of options that have choices as they are known."""
    result: list[str] = []
    option = ""
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag.startswith("--"):
            option = flag.removeprefix("--").replace("-", "_")
            arg = flag + equals + _known(option, value, types) if equals else arg
        else:
            arg = _known(option, arg, types)
            option = option if get_origin(types.get(option)) is tuple else ""
        result.append(arg)
    return result


def _known(option: str, value: str, types: dict[str, Any]) -> str:
    choices = _choices(types.get(option))
    return known_name(value, choices, option.replace("_", " ")) if choices else value


def _named(hint: Any) -> dict[str, type]:
    """Return the classes of a union of commands by their names; none if it is something else."""
    if get_origin(hint) is Annotated and dataclasses.is_dataclass(kind := get_args(hint)[0]):
        names = [getattr(note, "name", None) for note in get_args(hint)[1:]]
        return {name: kind for name in names if name}  # pyright: ignore[reportReturnType]
    found: dict[str, type] = {}
    for part in get_args(hint):
        found |= _named(part)
    return found


def _choices(hint: Any) -> list[str]:
    """Return the values of the literals in a type, and "None" if it may be none."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    found = [choice for part in get_args(hint) for choice in _choices(part)]
    return [*found, "None"] if found and type(None) in get_args(hint) else found

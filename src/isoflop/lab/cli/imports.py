"""`--import MODULE`: own methods, patterns, transforms, models, data sets and recipes."""

from collections.abc import Sequence

from isoflop.errors import IsoflopError
from isoflop.lab.own import import_modules

OPTION = "--import"


def import_own(args: Sequence[str]) -> list[str]:
    """Import the modules that a command line names, and return it without them.

    The modules register what they define, before any name is looked up.

    Raises:
        IsoflopError: A module is missing, or cannot be imported.
    """
    rest = []
    args = list(args)
    while args:
        arg = args.pop(0)
        name, equals, value = arg.partition("=")
        if name != OPTION:
            rest.append(arg)
            continue
        if not equals:
            if not args or args[0].startswith("-"):
                raise IsoflopError(f"{OPTION} needs the name of a module, such as my_methods.")
            value = args.pop(0)
        import_modules([value])
    return rest

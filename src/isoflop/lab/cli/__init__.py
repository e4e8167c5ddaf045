"""The command line, `isoflop COMMAND`: one file for each command.

Everything heavy is imported by the command that needs it, so that `isoflop --help` is fast.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from isoflop import __version__
from isoflop.errors import IsoflopError

try:
    import tyro
except ModuleNotFoundError:
    sys.exit("The command line needs tyro, which is not installed: pip install 'isoflop[train]'")

from isoflop.lab.cli.bench import Bench
from isoflop.lab.cli.evaluate import Evaluate
from isoflop.lab.cli.export import Export
from isoflop.lab.cli.imports import import_own
from isoflop.lab.cli.listing import List
from isoflop.lab.cli.profile import Profile
from isoflop.lab.cli.report import Report
from isoflop.lab.cli.reproduce import Reproduce
from isoflop.lab.cli.spectra import Spectra
from isoflop.lab.cli.spelling import spelt
from isoflop.lab.cli.train import Train

Command = (
    Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Profile, tyro.conf.subcommand("profile")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Spectra, tyro.conf.subcommand("spectra")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def parse(args: Sequence[str] | None = None) -> Any:
    """Return the command that a command line stands for; `run()` runs it.

    Raises:
        UnknownNameError: There is no such command, or no such choice of an option.
    """
    return tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="isoflop",
        description=(
            "Sparse Iso-FLOP training: larger, sparser models for exactly the same FLOPs. With "
            "--import MODULE, any command knows what that module registers: own methods, patterns, "
            "transforms, models, data sets, recipes. --version prints the version."
        ),
        args=spelt(sys.argv[1:] if args is None else args, Command),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user, or a full disk, is one line and exit code 2."""
    # As with `python -m`, `package.module:function` may lie in the working directory.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        args = import_own(sys.argv[1:] if args is None else args)
        if args == ["--version"]:
            print(f"isoflop {__version__}")
            return
        parse(args).run()
        sys.stdout.flush()
    except IsoflopError as error:
        _fail(str(error))
    except BrokenPipeError:  # as of `isoflop list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, a folder that may not be written to: no mistake of ours, nor a traceback's worth.
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print(
            "Interrupted. Continue a training run with --resume, others by the same command.",
            file=sys.stderr,
        )
        sys.exit(130)


def _fail(message: str) -> None:
    text = " ".join(message.split())
    if sys.stderr.isatty():
        text = f"\033[31m{text}\033[0m"
    print(text, file=sys.stderr)
    sys.exit(2)

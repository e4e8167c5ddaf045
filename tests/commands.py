"""Running the `isoflop` command in tests."""

import pytest

from isoflop.lab.cli import main


def fails(capsys, *args):
    """Return the message of a command that must fail as the user's mistakes do."""
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err

"""The command finds its verbs in the installed extras, and says what to do about one that is not there."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from draftyard_api import __version__, cli
from draftyard_api.exit_codes import ExitCode


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]], ids=["nothing", "--help", "help"])
def test_help_names_every_verb(arguments, capsys):
    assert cli.main(arguments) == ExitCode.OK
    out = capsys.readouterr().out
    assert all(f"  {verb}" in out for verb in cli.EXTRAS)


def test_version(capsys):
    assert cli.main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == f"draftyard {__version__}"


def test_an_unknown_verb_is_refused_with_what_is_accepted(capsys):
    assert cli.main(["trian"]) == ExitCode.BAD_TASK
    err = capsys.readouterr().err
    assert "given trian; accepted: run, plan, regenerate, prepare" in err


def test_a_verb_of_an_absent_extra_says_how_to_get_it():
    assert cli.missing("train") == "draftyard train: not installed; pip install 'draftyard[trainer]' brings it"


def test_every_entry_point_is_a_known_verb():
    assert {point.name for point in entry_points(group=cli.ENTRY_POINTS)} == set(cli.EXTRAS)

"""The command `draftyard`. Its verbs come from the installed extras, so an operator's image never imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import cast

from draftyard_api import __version__
from draftyard_api.exit_codes import ExitCode

ENTRY_POINTS = "draftyard.commands"
EXTRAS = {
    "run": "trainer",
    "plan": "",
    "regenerate": "trainer",
    "prepare": "trainer",
    "generate": "trainer",
    "train": "trainer",
    "evaluate": "trainer",
    "presets": "trainer",
    "inspect": "trainer",
    "verify": "trainer",
    "track": "trainer",
    "report": "trainer",
    "compare": "trainer",
    "convert": "trainer",
    "export": "trainer",
    "operator": "operator",
}
"""Every verb, in the order of the help text, and the extra that brings it."""

Verb = Callable[[Sequence[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return ExitCode.OK
    if given[0] == "--version":
        print(f"draftyard {__version__}")
        return ExitCode.OK
    verb = find_verb(given[0])
    if verb is None:
        print(missing(given[0]), file=sys.stderr)
        return ExitCode.BAD_TASK
    return verb(given[1:])


def find_verb(name: str) -> Verb | None:
    """The function behind a verb, or None where no installed extra has it."""
    found = list(entry_points(group=ENTRY_POINTS, name=name))
    return cast("Verb", found[0].load()) if found else None


def missing(name: str) -> str:
    """What to do about a verb that is not here."""
    if name in EXTRAS:
        return f"draftyard {name}: not installed; pip install 'draftyard[{EXTRAS[name]}]' brings it"
    return f"draftyard: given {name}; accepted: {', '.join(EXTRAS)}"


def usage() -> str:
    """The help text: one line per verb that is installed."""
    lines = ["usage: draftyard VERB ...", "", "Train EAGLE-3 draft models for speculative decoding.", ""]
    for name in EXTRAS:
        verb = find_verb(name)
        summary = (verb.__doc__ or "").partition("\n")[0] if verb else missing(name).partition("; ")[2]
        lines.append(f"  {name:<10} {summary}")
    return "\n".join([*lines, "", "`draftyard VERB --help` says more; --version prints the version."])


if __name__ == "__main__":
    sys.exit(main())

"""What pip is asked for in an image: `wanted.py EXTRA ...` prints what the project and some of its extras require.

It reads `pyproject.toml` beside it. The image's layer of dependencies is made from its output, so that the layer stays
as it is while settings of tools change, or code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one requirement per line. Raises KeyError for an extra that is not there."""
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())["project"]
    asked = [line for extra in sys.argv[1:] for line in required(project, extra)]
    print("\n".join((*project["dependencies"], *asked)))


def required(project: dict[str, Any], extra: str) -> list[str]:
    """What an extra requires, with what those require that it is made of."""
    found: list[str] = []
    for line in project["optional-dependencies"][extra]:
        name, _, others = line.partition("[")
        parts = others.removesuffix("]").split(",") if name == project["name"] else []
        found += [each for part in parts for each in required(project, part)] or [line]
    return found


if __name__ == "__main__":
    main()

"""What pip is asked for in an image: `wanted.py EXTRA` prints what the project and one of its extras require.

It reads `pyproject.toml` beside it. The image's layer of dependencies is made from its output, so that the layer stays
as it is while settings of tools change, or code.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print one requirement per line. Raises KeyError for an extra that is not there."""
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text())["project"]
    print("\n".join((*project["dependencies"], *project["optional-dependencies"][sys.argv[1]])))


if __name__ == "__main__":
    main()

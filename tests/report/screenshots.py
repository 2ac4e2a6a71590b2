"""Pictures of a report for the docs: `python tests/report/screenshots.py WORKSPACE RUN FOLDER`.

Narrow and wide, light and dark, from the top of the page; few colours, so that they stay small.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import chromium
from PIL import Image

from draftyard_trainer import commands

SIZES = {400: 1500, 1400: 1560}
"""Heights by width, in CSS pixels."""
COLOURS = 64
MAX_BYTES = 300_000


def main(workspace: str, run: str, folder: Path) -> int:
    """Write `report-<width>-<scheme>.png`. Returns an exit code."""
    if chromium.program() is None:
        print("Chromium is not there: `make browser` installs it", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, chromium.started() as browser:
        page = Path(made) / "report.html"
        if code := commands.report([workspace, "--run", run, "--out", str(page)]):
            return code
        # Commands name where the demo lies; whose folder that was says nothing to a reader.
        page.write_text(page.read_text().replace(str(Path(workspace).resolve().parents[1]), "~/draftyard"))
        for width, height in SIZES.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                shot = chromium.look(context, page).page.screenshot()
                context.close()
                write(shot, folder / f"report-{width}-{scheme}.png")
    return 0


def write(shot: bytes, path: Path) -> None:
    """A picture in few colours. Raises ValueError when it is too large for the docs all the same."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes; accepted: at most {MAX_BYTES}; show less of the page")
    print(f"{path}: {size} bytes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))

"""Flags of the trainers that people come from, read out of their published packages without running them.

    pip download --no-deps specforge==0.2.0 speculators==0.9.0 --dest PEERS
    python docs/scripts/flags.py PEERS

writes docs/scripts/specforge-0.2.0.txt and speculators-0.9.0.txt: one flag a line. A test compares the pages with them.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CONFIGS = {
    "specforge-0.2.0": {"": ("specforge/config/schema.py", "Config")},
    "speculators-0.9.0": {"train ": ("speculators/train/config/schema.py", "TrainConfig")},
}
"""Typed configs, by what stands before a field of them: a file, and its outermost class."""
COMMANDS = {
    "specforge-0.2.0": {"train ": "specforge/cli.py", "export ": "specforge/cli.py", "benchmark ": "specforge/cli.py"},
    "speculators-0.9.0": {
        "prepare-data ": "speculators/cli/prepare_data.py",
        "generate-offline-data ": "speculators/cli/generate_offline_data.py",
        "regenerate-responses ": "speculators/cli/regenerate_responses.py",
        "convert ": "speculators/cli/convert.py",
    },
}


def main() -> int:
    """Write both lists."""
    for name in CONFIGS:
        (wheel,) = Path(sys.argv[1]).glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = list(dict.fromkeys(flags(name, archive)))
        (HERE / f"{name}.txt").write_text("".join(f"{flag}\n" for flag in found))
    return 0


def flags(name: str, archive: zipfile.ZipFile) -> Iterator[str]:
    """All flags of one package."""
    for prefix, (file, outermost) in CONFIGS[name].items():
        classes = {one.name: one for one in tree(archive, file).body if isinstance(one, ast.ClassDef)}
        for path, depth in fields(classes, outermost):
            # speculators turns fields into flags without the group, SpecForge takes paths
            yield prefix + (path if not prefix else "--" + path.split(".")[-1].replace("_", "-")) if depth else path
    for prefix, file in COMMANDS[name].items():
        yield from (f"{prefix}{flag}" for flag in command_flags(tree(archive, file), prefix.strip()))


def tree(archive: zipfile.ZipFile, file: str) -> ast.Module:
    """A module of the package."""
    return ast.parse(archive.read(file))


def fields(classes: dict[str, ast.ClassDef], name: str, path: str = "") -> Iterator[tuple[str, bool]]:
    """Paths of all fields below a class; a field whose type is another class of the file is looked into."""
    for entry in classes[name].body:
        if not isinstance(entry, ast.AnnAssign) or not isinstance(entry.target, ast.Name):
            continue
        if entry.target.id.startswith("_") or entry.target.id == "model_config":
            continue
        words = [word.id for word in ast.walk(entry.annotation) if isinstance(word, ast.Name)]
        inner = next((word for word in words if word in classes), None)
        below = f"{path}{entry.target.id}"
        if inner is None:
            yield below, True
        else:
            yield from fields(classes, inner, f"{below}.")


def command_flags(module: ast.Module, command: str) -> Iterator[str]:
    """Options of a typer command, or of one argparse parser whose variable is named like the command."""
    for call in (one for one in ast.walk(module) if isinstance(one, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            owner = call.func.value
            names = [
                one.value for one in call.args if isinstance(one, ast.Constant) and str(one.value).startswith("--")
            ]
            if isinstance(owner, ast.Name) and owner.id == command:
                yield from names
    for function in (one for one in ast.walk(module) if isinstance(one, ast.FunctionDef)):
        for argument in function.args.args:
            if argument.annotation is not None and "typer.Option" in ast.unparse(argument.annotation):
                yield "--" + argument.arg.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())

"""A library forgets another one: it loads where that one is not, and still needs what it needs."""

from __future__ import annotations

import importlib.util
import mmap
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
GCC = shutil.which("gcc")
LOAD = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).plain())"
USER = """
extern double cos(double);
extern int versioned(void), unversioned(void);
int (*kept)(void) = versioned;
int plain(void) { return kept ? versioned() + unversioned() : OTHERWISE; }
"""
OTHERWISE = {
    "it also needs a version of the system's": "({ volatile double zero = 0; (int)(cos(zero) * 7); })",
    "it needs no other version": "7",
}


@pytest.fixture(scope="module")
def without_gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("without_gpu", ROOT / "images/trainer/without_gpu.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compiled(folder: Path, name: str, code: str, *flags: str) -> Path:
    source = folder / f"{name}.c"
    source.write_text(code)
    made = folder / name
    subprocess.run([str(GCC), "-shared", "-fPIC", "-o", made, source, *flags], check=True)
    return made


@pytest.fixture(params=OTHERWISE.values(), ids=OTHERWISE)
def library(tmp_path, request) -> Path:
    """A library that takes a versioned and an unversioned function from others, and one from the system's."""
    if GCC is None:
        pytest.skip("gcc is not there: it makes the library that this test changes")
    script = tmp_path / "versions"
    script.write_text("GONE_1 { global: versioned; local: *; };\n")
    blas = compiled(
        tmp_path, "libcublas.so.13", "int versioned(void) { return 20; }",
        f"-Wl,--version-script={script}", "-Wl,-soname,libcublas.so.13",
    )  # fmt: skip
    dnn = compiled(
        tmp_path, "libcudnn.so.9", "int unversioned(void) { return 1; }", "-Wl,-soname,libcudnn.so.9"
    )  # fmt: skip
    made = compiled(
        tmp_path,
        "libuser.so",
        USER,
        str(blas),
        str(dnn),
        "-lm",
        f"-DOTHERWISE={request.param}",
        f"-Wl,-rpath,{tmp_path}",
    )
    assert load(made).stdout.strip() == "21"
    return made


def load(library: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LOAD, library], capture_output=True, text=True, check=False)


def changed(without_gpu: ModuleType, library: Path) -> list[str]:
    with library.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as image:
        return without_gpu.forget(image)


def test_it_does_not_load_before(library):
    (library.parent / "libcublas.so.13").unlink()
    assert "libcublas.so.13: cannot open shared object file" in load(library).stderr


def test_it_loads_after(without_gpu, library):
    assert changed(without_gpu, library) == ["libcublas.so.13", "libcudnn.so.9"]
    for gone in ("libcublas.so.13", "libcudnn.so.9"):
        (library.parent / gone).unlink()
    done = load(library)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr


def test_a_second_time_changes_nothing(without_gpu, library):
    changed(without_gpu, library)
    before = library.read_bytes()
    assert changed(without_gpu, library) == []
    assert library.read_bytes() == before


def test_pip_is_not_told_of_them_either(without_gpu):
    before = (
        "Name: torch\nRequires-Dist: sympy>=1.13\nRequires-Dist: nvidia-nccl-cu13==2.30\n"
        'Requires-Dist: cuda-toolkit[cublas]==13.2; platform_system == "Linux"\nRequires-Dist: triton~=3.9\n'
    )
    assert without_gpu.forget_packages(before) == "Name: torch\nRequires-Dist: sympy>=1.13\n"


@pytest.mark.parametrize(
    ("name", "is_gone"),
    [("libcublas.so.13", True), ("libcublasLt.so.13", True), ("libcudart.so.13", False), ("libm.so.6", False)],
)
def test_what_is_gone(without_gpu, name, is_gone):
    assert without_gpu.is_gone(name) == is_gone

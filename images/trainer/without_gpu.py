"""Make an installed torch work where the libraries of CUDA are not: `without_gpu.py SITE_PACKAGES`.

torch from a package index is linked against some three gigabytes of libraries that a CPU never enters. The loader asks
for all of them at once. Here each of torch's libraries forgets that it needs them, and what it would take from them
becomes weak: an address of zero. `libcudart` stays, since torch registers its kernels there while it is loaded.

Its metadata forgets the packages of those libraries too, so that pip does not bring them back. For images of tests
only; an image for GPUs is left as it is.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

GONE = (
    "libcublas", "libcublasLt", "libcudnn", "libcufft", "libcufile", "libcupti", "libcusolver", "libcusparse",
    "libcusparseLt", "libnccl", "libnvrtc", "libnvshmem_host",
)  # fmt: skip
"""Libraries that are not there, without `.so` and their version."""
GONE_PACKAGES = ("cuda-", "nvidia-", "triton")
"""What the names of packages begin with that are not there."""

# <elf.h>, 64 bits, little endian
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NEED = struct.Struct("<HHIII")
_NEED_OF = struct.Struct("<IHHII")
_DYNSYM, _DYNAMIC_SECTION, _VERSIONS, _NEEDS = 11, 6, 0x6FFFFFFF, 0x6FFFFFFE
_NEEDED, _VERSYM, _VERNEED, _VERNEEDNUM, _IGNORED = 1, 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF, 0x6000001F
_GLOBAL, _WEAK = 1, 2
_UNVERSIONED = 1


@dataclass(frozen=True)
class Section:
    """A part of the file."""

    kind: int
    offset: int
    size: int
    link: int


def main() -> None:
    """Change every library of torch in place, and say which ones were changed."""
    packages = Path(sys.argv[1])
    for metadata in packages.glob("torch-*.dist-info/METADATA"):
        metadata.write_text(forget_packages(metadata.read_text()))
    for file in sorted((packages / "torch" / "lib").glob("*.so*")):
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as image:
            dropped = forget(image)
        if dropped:
            print(f"{file.name}: {', '.join(dropped)}")


def forget_packages(metadata: str) -> str:
    """A package's metadata without the packages that are not there."""
    gone = tuple(f"Requires-Dist: {name}" for name in GONE_PACKAGES)
    return "".join(line for line in metadata.splitlines(keepends=True) if not line.startswith(gone))


def forget(image: mmap.mmap) -> list[str]:
    """Drop what is gone from what a library needs. Returns the names that were dropped."""
    found = list(sections(image))
    by_kind = {section.kind: section for section in found}
    dynamic = by_kind.get(_DYNAMIC_SECTION)
    if dynamic is None:
        return []
    strings = found[dynamic.link]
    dropped = []
    for at in range(dynamic.offset, dynamic.offset + dynamic.size, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(image, at)
        if tag == _NEEDED and is_gone(name := text(image, strings, value)):
            _DYNAMIC.pack_into(image, at, _IGNORED, value)
            dropped.append(name)
    if dropped:
        versions = forget_versions(image, dynamic, by_kind[_NEEDS], strings) if _NEEDS in by_kind else set()
        weaken(image, by_kind[_DYNSYM], by_kind[_VERSIONS], versions)
    return dropped


def forget_versions(image: mmap.mmap, dynamic: Section, needs: Section, strings: Section) -> set[int]:
    """Take what is gone out of the chain of wanted versions. Returns the numbers that symbols bore for them."""
    kept: list[int] = []
    numbers: set[int] = set()
    at, step = needs.offset, 1
    while step:
        _, count, file, first, step = _NEED.unpack_from(image, at)
        if is_gone(text(image, strings, file)):
            one = at + first
            for _ in range(count):
                _, _, number, _, after = _NEED_OF.unpack_from(image, one)
                numbers.add(number)
                one += after
        else:
            kept.append(at)
        at += step
    for here, following in pairwise([*kept, 0]):
        version, count, file, first, _ = _NEED.unpack_from(image, here)
        _NEED.pack_into(image, here, version, count, file, first, following - here if following else 0)
    for at in range(dynamic.offset, dynamic.offset + dynamic.size, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(image, at)
        if not kept and tag in (_VERSYM, _VERNEED, _VERNEEDNUM):
            _DYNAMIC.pack_into(image, at, _IGNORED, value)
        elif tag == _VERNEED:
            _DYNAMIC.pack_into(image, at, tag, value + kept[0] - needs.offset)
        elif tag == _VERNEEDNUM:
            _DYNAMIC.pack_into(image, at, tag, len(kept))
    return numbers


def weaken(image: mmap.mmap, symbols: Section, versions: Section, numbers: set[int]) -> None:
    """Names that a library takes from elsewhere may be missing, if they bear no version or one that is gone."""
    for index in range(symbols.size // _SYMBOL.size):
        at, version_at = symbols.offset + index * _SYMBOL.size, versions.offset + 2 * index
        name, info, other, section, value, size = _SYMBOL.unpack_from(image, at)
        (version,) = struct.unpack_from("<H", image, version_at)
        if section or info >> 4 != _GLOBAL or not (version in numbers or version <= _UNVERSIONED):
            continue
        _SYMBOL.pack_into(image, at, name, _WEAK << 4 | info & 0xF, other, section, value, size)
        struct.pack_into("<H", image, version_at, _UNVERSIONED)


def sections(image: mmap.mmap) -> Iterator[Section]:
    """Every part of the file, in its order."""
    *_, offset, _, _, _, _, size, count, _ = _HEADER.unpack_from(image, 0)
    for number in range(count):
        _, kind, _, _, at, length, link, *_ = _SECTION.unpack_from(image, offset + number * size)
        yield Section(kind, at, length, link)


def text(image: mmap.mmap, strings: Section, offset: int) -> str:
    """A name out of the table of names."""
    start = strings.offset + offset
    return image[start : image.find(b"\0", start)].decode()


def is_gone(name: str) -> bool:
    """Whether a library is one that is not there."""
    return name.partition(".so")[0] in GONE


if __name__ == "__main__":
    main()

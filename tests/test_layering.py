"""The house plan of docs/architecture.md, enforced: imports point downward only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mountstore"

# What each part may import, besides itself and what stands below `errors`.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "blobs": {"errors"},
    "namespace": {"blobs", "errors"},
    "store": {"namespace", "blobs", "errors"},
    "care": {"store", "namespace", "blobs", "errors"},
    "images": {"errors"},
    "control": {"care", "images", "store", "namespace", "blobs", "errors"},
    "fuse": {"control", "care", "store", "namespace", "blobs", "errors"},
    "cli": {"fuse", "control", "care", "store", "namespace", "blobs", "errors"},
}

# Modules that only these parts may import. Which errno an exception becomes is decided in fuse/; below it, where
# system calls are made, errno is only what the system said, or would have said.
PRIVATE: dict[str, set[str]] = {
    "pyfuse3": {"fuse"},
    "sqlite3": {"namespace"},
    "errno": {"fuse", "namespace", "blobs"},
    "PIL": {"images"},
}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
            if node.module == "mountstore":
                names.update(f"mountstore.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward_only(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert imported(path) == set()
        return
    assert part in BELOW, f"{part} has no place in the house plan"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "mountstore" and rest and rest != "__version__":
            target = rest.partition(".")[0]
            assert target == part or target in BELOW[part], f"{path} imports {name}"
        if top in PRIVATE:
            assert part in PRIVATE[top], f"{path} imports {name}, which belongs to {sorted(PRIVATE[top])}"


def test_the_plan_has_no_cycles() -> None:
    seen: set[str] = set()
    while len(seen) < len(BELOW):
        ready = {part for part, below in BELOW.items() if part not in seen and below <= seen}
        assert ready, f"cycle among {set(BELOW) - seen}"
        seen |= ready

"""Imports run one way, the device side needs numpy and Pillow alone, and nothing imports in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.markdown import ROOT

ROOMS = {
    "edgevision": ROOT / "edgevision",
    "edgevision_calibration": ROOT / "calibration" / "edgevision_calibration",
    "edgevision_converters": ROOT / "converters" / "edgevision_converters",
    "edgevision_benchmarks": ROOT / "benchmarks" / "edgevision_benchmarks",
}
# room → rooms it may import from, anywhere in its code
MAY_IMPORT = {
    "edgevision": {"edgevision"},
    "edgevision_calibration": {"edgevision", "edgevision_calibration"},
    "edgevision_converters": {"edgevision", "edgevision_calibration", "edgevision_converters"},
    "edgevision_benchmarks": {"edgevision", "edgevision_benchmarks"},
}
# what stands on top of the rooms imports them inside functions
ON_TOP = ("edgevision.cli", "edgevision.pipeline", "edgevision.recipe", "edgevision.remote")
# the one module of what stands on top that rooms read: where the graph of a bundle is kept
READ_FROM_BELOW = "edgevision.pipeline.workspace"

DEVICE_SIDE = (
    "edgevision.errors",
    "edgevision.dependencies",
    "edgevision.registry",
    "edgevision.files",
    "edgevision.progress",
    "edgevision.images",
    "edgevision.preprocess",
    "edgevision.tasks",
    "edgevision.bundle",
    "edgevision.compression",
    "edgevision.parity",
    "edgevision.runtime",
    "edgevision.data",
    "edgevision.detection",
    "edgevision.devices",
    "edgevision.cli",
    "edgevision_benchmarks",
)
# these import without torch and onnx as well, so that what needs them can say so in one line
LIGHT_TO_IMPORT = ("edgevision.checkpoint", "edgevision.graph", "edgevision.models.catalogue", "edgevision.pipeline")
DEVICE_PACKAGES = {"numpy", "PIL"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file, for every module of the four packages; a package's file is its ``__init__.py``."""
    found = {}
    for room, folder in ROOMS.items():
        for path in folder.rglob("*.py"):
            parts = [room, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name: str) -> str:
    return name.partition(".")[0]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"), str(modules()[name]))


def statements(body: list[ast.stmt], *, inside_functions: bool) -> Iterator[ast.stmt]:
    """Import statements, also those below ``if`` and ``try``; never those for type checkers alone."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse, inside_functions=inside_functions)
        else:
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                inner = getattr(node, part, [])
                for item in inner:
                    below = [item] if isinstance(item, ast.stmt) else item.body
                    yield from statements(below, inside_functions=inside_functions)


@cache
def imports(name: str, *, inside_functions: bool) -> frozenset[str]:
    """Dotted names that a module imports; ``from package import module`` counts as the module."""
    found = set()
    for node in statements(tree_of(name).body, inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{name}: imports are absolute"
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            found.add(submodule if submodule in modules() else str(node.module))
    return frozenset(found)


@cache
def ancestors(name: str) -> tuple[str, ...]:
    """A module and the packages that are executed before it, outermost first."""
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return tuple(prefix for prefix in prefixes if prefix in modules())


def closure(start: str) -> tuple[set[str], dict[str, str]]:
    """What importing a module executes: modules of ours, and top-level names of others → who asks for them."""
    seen: set[str] = set()
    foreign: dict[str, str] = {}
    waiting = list(ancestors(start))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in imports(name, inside_functions=False):
            if room_of(imported) in ROOMS:
                waiting += ancestors(imported)
            elif room_of(imported) not in sys.stdlib_module_names:
                foreign.setdefault(room_of(imported), name)
    return seen, foreign


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_scan_sees_what_there_is():
    assert len(modules()) > 100
    assert "numpy" in imports("edgevision.bundle", inside_functions=False)
    assert "edgevision.runtime.session" in imports("edgevision.parity", inside_functions=False)
    assert "edgevision_calibration.observe" in imports("edgevision.pipeline.calibration", inside_functions=True)
    assert "edgevision_calibration.observe" not in imports("edgevision.pipeline.calibration", inside_functions=False)
    assert "torch" in closure("edgevision.models.layers")[1]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    for name in modules():
        if room_of(name) != room or within(name, ON_TOP):
            continue
        others = {room_of(imported) for imported in imports(name, inside_functions=True)} & set(ROOMS)
        assert others <= MAY_IMPORT[room], f"{name} imports {others - MAY_IMPORT[room]}"


def test_what_stands_on_top_imports_the_rooms_inside_functions():
    for name in modules():
        if within(name, ON_TOP):
            others = {room_of(imported) for imported in imports(name, inside_functions=False)} & set(ROOMS)
            assert others <= {"edgevision"}, f"{name} imports {others} when it is imported"


def test_nothing_below_imports_what_stands_on_top():
    for name in modules():
        if not within(name, (*ON_TOP, "edgevision.__main__")):
            upward = {imported for imported in imports(name, inside_functions=True) if within(imported, ON_TOP)}
            assert upward <= {READ_FROM_BELOW}, f"{name} imports {upward}"


@pytest.mark.parametrize("package", DEVICE_SIDE)
def test_the_device_side_needs_numpy_and_pillow_alone(package):
    names = [name for name in modules() if within(name, (package,))]
    assert names
    for name in names:
        _, foreign = closure(name)
        extra = {other: asker for other, asker in foreign.items() if other not in DEVICE_PACKAGES}
        assert not extra, f"import {name} needs {extra}"


@pytest.mark.parametrize("package", LIGHT_TO_IMPORT)
def test_the_host_side_imports_without_torch_and_onnx_where_it_promises_to(package):
    for name in modules():
        if within(name, (package,)):
            _, foreign = closure(name)
            assert set(foreign) <= DEVICE_PACKAGES, f"import {name} needs {foreign}"


@pytest.mark.parametrize("name", ["edgevision", "edgevision.cli", "edgevision.cli.convert", "edgevision.__main__"])
def test_start_costs_no_package_at_all(name):
    _, foreign = closure(name)
    assert not foreign, f"import {name} needs {foreign}"


def test_no_module_imports_itself_in_a_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' → '.join((*path[path.index(name) :], name))}"
        if name in done:
            return
        for imported in sorted(imports(name, inside_functions=False)):
            if imported in modules():
                visit(imported, (*path, name))
        done.add(name)

    for name in sorted(modules()):
        visit(name, ())

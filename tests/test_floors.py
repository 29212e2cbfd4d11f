"""The core's rooms, floor by floor: a room uses only rooms below it, and the core no plugin.

What is imported inside a function, to come in when it is needed, may lie anywhere.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import modalloy

ROOT = Path(modalloy.__file__).parent

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "errors families cards",
        "checkpoints connectors kernels structured modality copying installed",
        "parent base_config benchmark tensor_method",
        "hookspecs smollm2 frozen opened",
        "quarantine base deltas builtin",
        "discovery requirements",
        "registry",
        "merging",
        "composition",
        "evaluation training interop testing",
        "authoring auto",
        "cli",
        "__main__",
    )
)


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a module imports when it is imported, types left out."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def sources() -> list[Path]:
    template = ROOT / "template"
    return sorted(file for file in ROOT.rglob("*.py") if not file.is_relative_to(template))


def room(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


def test_every_room_has_its_floor() -> None:
    rooms = {room(file) for file in sources()} - {"__init__"}
    assert rooms == frozenset().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(rooms)


def test_a_room_uses_only_rooms_below_it() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for file in sources():
        own = room(file)
        for name in imports(file):
            package, _, rest = name.partition(".")
            used = rest.partition(".")[0]
            if package != "modalloy" or not rest or own in (used, "__init__"):
                continue
            if floor[used] >= floor[own]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_core_imports_no_plugin() -> None:
    named = [(file, name) for file in sources() for name in imports(file)]
    assert not [pair for pair in named if pair[1].startswith("modalloy_")]

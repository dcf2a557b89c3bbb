"""The structure of the package: which room may know which, and what none may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_dapo"
# Each room may import from those of lower floors, and from itself
FLOORS = [
    {"arguments"},
    {
        "estimators",
        "faults",
        "controllers",
        "distributions",
        "atari_vec_env",
        "minatar",
        "panels",
        "hyperparams",
        "cli",
        "atari_scores",
    },
    {"divergences", "fast", "fused", "presets"},
    {"policies"},
    {"buffers"},
    {"loss", "acting", "checkpoint", "export"},
    {"hub"},
    {"dapo"},
    {"recurrent", "maskable", "distributed"},
    {"zoo"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
BELOW_DAPO = [
    path for path in FILES if FLOOR.get(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), 9) < FLOOR["dapo"]
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere in it, for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sb3_dapo"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if str(node.module) == "sb3_dapo":
                yield from (f"sb3_dapo.{alias.name}" for alias in node.names)
            elif str(node.module).startswith("sb3_dapo"):
                yield str(node.module)


def test_every_room_is_known() -> None:
    assert {room_of(path) for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_down(path: Path) -> None:
    room = room_of(path)
    for module in imports(path):
        other = module.split(".")[1]
        # A name of the package itself: on the roof, whatever defines it lies at most as high as dapo
        floor = FLOOR.get(other, FLOOR["dapo"])
        assert other == room or floor < FLOOR[room], f"{path.relative_to(ROOT)} imports {module}"


def test_no_circle() -> None:
    """Also within a room."""
    graph = {module_of(path): set(imports(path)) & set(map(module_of, FILES)) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join([*above, module])}"
        if module not in done:
            for other in sorted(graph[module] - {module}):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", BELOW_DAPO, ids=module_of)
def test_nothing_below_names_the_algorithm(path: Path) -> None:
    """Nor writes attributes of a model: methods that do are those of a mixin, on ``self``."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Name) and node.id == "DAPO"), f"line {node.lineno} names DAPO"
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            is_model = node.value.id == "model" or node.value.id.endswith("_model")
            is_made_here = is_model and path.name == "exporting.py"  # load_exported builds the model that it returns
            is_loaded_here = is_model and path.name == "checkpoints.py"
            assert (
                not is_model or is_made_here or is_loaded_here
            ), f"line {node.lineno} writes {node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_test_tools(path: Path) -> None:
    assert "unittest" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_functions_are_short(path: Path) -> None:
    """At most 60 lines, docstring included; constructors have signatures that take more."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"

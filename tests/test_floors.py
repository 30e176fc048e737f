"""Who may import whom: downwards only, each library in its own rooms, no module too long."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "openai_gateway"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "errors": 0,
    "config": 1,
    "wire": 2,
    "remedies": 3,
    "mapped_file": 0,
    "processes": 0,
    "transport": 3,
    "limits": 3,
    "accounting": 4,
    "recordings": 4,
    "upstream": 4,
    "server": 5,
    "websocket": 5,
    "blueprints": 6,
    "page": 7,
    "app": 8,
    "collect": 8,
    "probe": 8,
    "gunicorn_settings": 9,
    "wsgi": 9,
    "cli": 9,
}
ROOMS = {
    "flask": {"app", "blueprints", "page", "simulator"},
    "werkzeug": {"app", "blueprints", "page", "simulator"},
    "gevent": {
        *("accounting", "blueprints", "collect", "limits", "page", "recordings", "server", "transport", "upstream"),
        *("websocket", "wsgi"),
    },
    "requests": {"cli", "collect", "transport", "upstream"},
    "urllib3": {"transport"},
    "gunicorn": {"server"},
    "click": {"cli"},
    "rich": {"cli"},
    "omegaconf": {"config"},
    "opentelemetry": {"accounting"},
    "prometheus_client": {"accounting"},
    "redis": {"limits"},
    "yaml": {"config", "simulator", "cli"},
    "marshmallow": {"config", "wire"},
    "msgspec": {
        *(
            "accounting",
            "blueprints",
            "collect",
            "config",
            "limits",
            "recordings",
            "transport",
            "upstream",
            "websocket",
        ),
        "wire",
    },
}
# `wire` is pure: what it is given is all it knows.
IMPURE = {"socket", "_socket", "ssl", "select", "time", "subprocess", "threading", "os"}


def _room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_downwards_and_keeps_to_its_libraries(module: Path) -> None:
    room = _room(module)
    assert room in {*FLOORS, "simulator", "__init__"}, f"{room} has no floor yet; give it one here"
    for name in _imports(module):
        top, *rest = name.split(".")
        if top in ROOMS:
            assert room in ROOMS[top], f"{top} has no place in {room}"
        assert room != "wire" or top not in IMPURE, f"wire is pure and imports no {top}"
        if top == "openai_gateway":
            assert room != "simulator" or rest[:1] == ["simulator"], "the simulator imports nothing of ours"
        if top != "openai_gateway" or not rest or rest[0] not in {*FLOORS, "simulator"}:
            continue
        target = rest[0]
        if target == "simulator":
            assert room in {"cli", "simulator"}
        elif target != room and room in FLOORS:
            assert FLOORS[target] < FLOORS[room], f"{room} imports {target}"


def test_redis_is_imported_in_one_module_and_only_when_it_is_used() -> None:
    """It is an extra, and half a second to import."""
    using = {module for module in MODULES if any(name.split(".")[0] == "redis" for name in _imports(module))}
    assert using == {PACKAGE / "limits" / "redis_link.py"}
    tree = ast.parse((PACKAGE / "limits" / "redis_link.py").read_text())
    at_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in at_top if "redis" in ast.unparse(node).replace("openai_gateway", "")]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short_and_opens_with_two_lines(module: Path) -> None:
    text = module.read_text()
    assert len(text.splitlines()) <= 300
    lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert lines
    assert len(lines) >= 3 or module.name == "__init__.py", "its job, and what it leaves to whom"


def test_a_class_name_stands_for_one_thing() -> None:
    """Whoever reads a name in a log, a docstring or a stack knows which class it is; a private one has its module."""
    trees = [ast.parse(module.read_text()) for module in MODULES]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_names_its_neighbours_and_they_are_there(module: Path) -> None:
    """A docstring ends with `See also: name (why), other.name.`, names as in this room or from the package on."""
    if module.name == "__init__.py":
        return
    doc = " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").split())
    _, colon, named = doc.partition("See also: ")
    assert colon
    for name in re.split(", | and ", re.sub(r" \([^)]*\)", "", named).removesuffix(".")):
        places = [folder / name.replace(".", "/") for folder in (module.parent, PACKAGE)]
        assert any(place.is_dir() or place.with_suffix(".py").exists() for place in places), name

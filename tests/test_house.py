"""The rules that keep the layout clear: floors, one name for one thing, the size of modules."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From bottom to top: a floor may import itself and those before it.
FLOORS = [
    *("utils", "_host", "metrics", "statistics", "annotations", "pseudo_labels", "pascal_b"),
    *("demo", "scoring", "report", "postprocessing", "losses", "integrations", "config"),
    *("config_rules", "modeling", "data", "evaluation", "engine", "experiments", "plugin"),
    "commands",
]
LONGEST, SHORTEST = 350, 80


@functools.lru_cache(maxsize=1)
def modules() -> dict[str, str]:
    """Sources of the package's modules; the embedded host, which repeats detectron2's, aside."""
    sources = {}
    for path in sorted((ROOT / "d2_smallobj").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "_embedded" not in path.parts:
            sources[name.removesuffix(".__init__")] = path.read_text("utf-8")
    return sources


def imported(source: str, known: set[str]) -> set[str]:
    """Modules of ``known`` that a source imports anywhere, lazy imports included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & known or {node.module})
    return found & known


@functools.lru_cache(maxsize=1)
def imports() -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = set(modules())
    return {name: imported(source, known) - {name} for name, source in modules().items()}


def floor(name: str) -> str:
    """The floor of a module; the package's own __init__ only finds the host."""
    return [*name.split("."), "_host"][1]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go up."""
    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another, or nothing; a package's __init__ counts as its modules."""
    left = {name: set(others) for name, others in graph.items()}
    while True:
        free = [name for name, others in left.items() if not others & left.keys()]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


def repeated(pairs: list[tuple[str, str]]) -> list[str]:
    """Names that several places have."""
    places = defaultdict(list)
    for name, place in pairs:
        places[name].append(place)
    return [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]


def report(wrong: list[str]) -> None:
    """Fail with one line each."""
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_every_folder_has_a_floor():
    assert {floor(name) for name in modules()} == set(FLOORS)


def test_no_import_goes_up():
    report(upward(imports()))


def test_no_circle_of_modules():
    # The names in an __init__ come from its modules, which do not import it back.
    report(circle(imports()))


def test_a_name_belongs_to_one_module_and_to_one_public_class():
    report(repeated([(name.rpartition(".")[2], name) for name in modules() if is_step(name)]))
    classes = [
        (node.name, name)
        for name, source in modules().items()
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    report(repeated(classes))


def is_step(name: str) -> bool:
    """Whether a module is more than the front of its folder."""
    return not (ROOT / name.replace(".", "/")).is_dir() and not name.endswith("__main__")


def test_modules_are_neither_long_nor_short():
    importers = defaultdict(set)
    for name, others in imports().items():
        for other in others:
            importers[other].add(name)
    wrong = []
    for name, source in modules().items():
        lines = len(source.splitlines())
        single = is_step(name) and len(importers[name]) == 1
        if lines > LONGEST or (lines < SHORTEST and single):
            wrong.append(f"{name}: {lines} lines, {len(importers[name])} importers")
    report(wrong)


@pytest.mark.parametrize(
    ("floors", "absent"),
    [
        (FLOORS[:3], {"torch", "detectron2", "scipy", "matplotlib", "pycocotools"}),
        (FLOORS[3 : FLOORS.index("losses")], {"torch", "detectron2", "scipy", "matplotlib"}),
    ],
)
def test_what_the_lower_floors_do_without(floors, absent):
    names = [name for name in modules() if floor(name) in floors and name != "d2_smallobj"]
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"print(sorted({absent} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_checks_can_fail():
    graph = {"d2_smallobj.utils.a": {"d2_smallobj.engine.b"}, "d2_smallobj.engine.b": set()}
    assert upward(graph) == ["d2_smallobj.utils.a -> d2_smallobj.engine.b"]
    assert circle({**graph, "d2_smallobj.engine.b": {"d2_smallobj.utils.a"}}) == sorted(graph)
    assert repeated([("x", "a"), ("y", "a"), ("x", "b")]) == ["x: a, b"]
    source = "def f():\n    from pkg import module\n    import pkg.other\n"
    assert imported(source, {"pkg.module", "pkg.other"}) == {"pkg.module", "pkg.other"}

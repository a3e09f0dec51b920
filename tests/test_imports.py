"""Imports point downwards only, Flower and Hydra stay at the edge, and no file grows long."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fl_cmi"

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "simulate",
        "distill",
        "compress",
        "verify",
        "last_step",
        "resume",
        "command",
        "spread",
        "__main__",
        "flower.app",
    ),
    ("flower",),
    (
        "compose",
        "sides",
        "disclosure",
        "flower.records",
        "flower.arrays",
        "checkpoint.begin",
        "checkpoint.run",
    ),
    ("compression",),
    ("synthesis", "distillation", "federated", "training", "attacks", "evaluate", "measures", "report"),
    ("ensemble", "gradients", "robust", "trust"),
    ("losses", "batchnorm", "moments", "augment", "bank", "checkpoint", "partition", "data", "models"),
    ("checks", "files", "memory", "nodes", "precision", "products", "session", "interrupt", "types", "rng"),
)
"""From the entry points down. A module may import from its own layer and from those below."""

ONLY_IN = {
    "flwr": ("flower",),
    "ray": ("flower",),
    "hydra": ("compose", "command", "compress"),
    "omegaconf": ("compose", "command", "resume", "simulate", "distill", "compress"),
    "torchao": (),
    "onnx": (),
    "onnxruntime": (),
}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.relative_to(PACKAGE).parts)


def module_of(path: Path) -> str:
    """The module's name below `fl_cmi`; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def layer_of(module: str) -> int | None:
    """The number of a module's layer, by its longest listed name; None for one that is not listed."""
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if within(module, (name,))
    ]
    return max(found)[1] if found else None


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere, by full name; `from package import module` counts as module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # `from .x import y`
                base = ("fl_cmi." + module_of(path)).split(".")
                above = node.level - (path.name == "__init__.py")
                start = ".".join(base[: len(base) - above] + ([node.module] if node.module else []))
            else:
                start = node.module or ""
            names = {f"{start}.{name.name}" for name in node.names}
            found |= {name if is_module(name) else start for name in names}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent / Path(*name.split("."))
    return name.startswith("fl_cmi.") and (path.is_dir() or path.with_suffix(".py").is_file())


def violations(module: str, imported: set[str]) -> list[str]:
    """What a module imports from above itself."""
    own = layer_of(module)
    assert own is not None
    wrong = []
    for name in sorted(imported):
        if name == "fl_cmi" or not name.startswith("fl_cmi."):
            continue
        other = layer_of(name.removeprefix("fl_cmi."))
        if other is None or other < own:
            wrong.append(name)
    return wrong


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    module = module_of(path)
    if not module:
        assert not {name for name in imports_of(path) if name.startswith("fl_cmi")}
        return
    assert layer_of(module) is not None, f"fl_cmi.{module} has no place in LAYERS"
    assert violations(module, imports_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_edge_stays_at_the_edge(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    wrong = [
        root for root, places in ONLY_IN.items() if root in roots and not within(module_of(path), places)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_annotations_are_real(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert "annotations" not in {
        name.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for name in node.names
    }, "postponed annotations would hide shapes from the run-time checks"


@pytest.mark.parametrize(
    ("module", "imported", "wrong"),
    [
        ("losses", "fl_cmi.ensemble", True),
        ("losses", "fl_cmi.types", False),
        ("synthesis.terms", "fl_cmi.training", False),
        ("synthesis.terms", "fl_cmi.flower.records", True),
        ("flower.records", "fl_cmi.flower.client", True),
        ("flower.client", "fl_cmi.flower.records", False),
        ("types", "fl_cmi.rng", False),
        ("rng", "fl_cmi.models.convnet", True),
        ("bank", "fl_cmi.nowhere", True),
    ],
)
def test_the_rule_itself(module: str, imported: str, wrong: bool) -> None:
    assert bool(violations(module, {imported})) is wrong


def test_there_is_something_to_read() -> None:
    assert len(FILES) > 20

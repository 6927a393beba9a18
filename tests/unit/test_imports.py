"""Imports point one way, and no step loads more than it needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "src/linnet": {"linnet"},
    "components": {"components", "linnet"},
    "pipelines": {"pipelines", "components", "linnet"},
    "serving": {"serving", "linnet"},
    "manifests": {"manifests"},
}
OURS = {
    "linnet",
    "components",
    "pipelines",
    "serving",
    "manifests",
    "tests",
    "benchmarks",
    "recipes",
}


def imported(file: Path) -> set[str]:
    """Names of all top-level packages that a file imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_one_way(place: str) -> None:
    files = sorted((ROOT / place).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): strays
        for file in files
        if (strays := (imported(file) & OURS) - ALLOWED[place])
    }
    assert not wrong


def test_only_launch_knows_kfp() -> None:
    files = sorted((ROOT / "src/linnet").rglob("*.py"))
    assert [file.name for file in files if "kfp" in imported(file)] == ["launch.py"]


def test_the_server_starts_without_what_its_image_lacks() -> None:
    program = (
        "import sys\n"
        "lacking = ('torch', 'pyarrow', 'sklearn', 'matplotlib', 'mlflow', 'kfp')\n"
        "sys.modules.update(dict.fromkeys(lacking))\n"
        "import linnet.inference.server, serving.__main__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "module",
    [
        "linnet.cli",
        "linnet.data.ingest",
        "linnet.evaluation.evaluate",
        "linnet.evaluation.gate",
        "linnet.explaining",
        "linnet.release.bundle",
        "linnet.stores.objects",
        "linnet.ui.server",
    ],
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "print([name for name in ('torch', 'lightning', 'kfp', 'mlflow') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"

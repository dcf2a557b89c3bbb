"""What is installed: all packages, the hyperparameter files, the command, and nothing from the extras with the core."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import sb3_dapo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    # From a copy: setuptools leaves its build folder behind, whose old files it would pack the next time
    source = tmp_path_factory.mktemp("source")
    for name in ("sb3_dapo", "hyperparams"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(source), str(source)]
    subprocess.run([sys.executable, *command], check=True)
    (path,) = source.glob("sb3_dapo-*.whl")
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def test_wheel_holds_every_module_and_hyperparameter_file(wheel_files: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_dapo").rglob("*.py")}
    data = {f"sb3_dapo/{path.relative_to(ROOT)}" for path in (ROOT / "hyperparams").glob("*.yml")}
    expected = modules | data | {"sb3_dapo/py.typed", "sb3_dapo/hyperparams/__init__.py"}
    assert "sb3_dapo/hyperparams/dapo.yml" in data
    packed = {name for name in wheel_files if ".dist-info/" not in name}
    assert packed == expected
    assert any(name.endswith("licenses/LICENSE") for name in wheel_files)


def test_versions_agree() -> None:
    assert version("sb3-dapo") == sb3_dapo.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", sb3_dapo.__version__)


def test_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="sb3-dapo")
    assert callable(command.load())


def test_core_imports_no_extra() -> None:
    extras = {"rl_zoo3", "optuna", "ray", "ale_py", "huggingface_sb3"}
    code = f"import sys, sb3_dapo; print({extras} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def module_level_imports(path: Path) -> set[str]:
    """Names of the packages that a module imports as it is loaded."""
    imports = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imports |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports.add(str(node.module).split(".")[0])
    return imports


def test_everything_the_core_imports_is_required() -> None:
    # These ask for their extra themselves
    extras = {"atari_vec_env.py", "zoo", "recurrent", "maskable", "distributed"}
    paths = (ROOT / "sb3_dapo").rglob("*.py")
    modules = [path for path in paths if not extras & set(path.relative_to(ROOT / "sb3_dapo").parts)]
    imported = set().union(*map(module_level_imports, modules)) - set(sys.stdlib_module_names) - {"sb3_dapo"}
    requirements = [line for line in requires("sb3-dapo") or [] if "extra ==" not in line]
    required = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in requirements}
    assert imported == required


def test_the_zoo_asks_for_its_extra(tmp_path: Path) -> None:
    (tmp_path / "rl_zoo3.py").write_text("raise ModuleNotFoundError('No module named rl_zoo3', name='rl_zoo3')")
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sb3_dapo.zoo"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install 'sb3-dapo[zoo]'" in result.stderr


def test_constraints_pin_torch_and_name_what_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(";")[0].strip().split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    required = (ROOT / "pyproject.toml").read_text()
    assert "huggingface-sb3" not in required
    assert not {"huggingface-sb3", "huggingface_sb3"} & set(pins)

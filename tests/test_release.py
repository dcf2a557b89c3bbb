"""What a release is made of: the sdist, the citation, the changelog and the workflows agree with the package."""

import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import sb3_dapo

ROOT = Path(__file__).parent.parent
WORKFLOWS = ROOT / ".github/workflows"


def test_sdist_holds_what_the_tests_need(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "*.egg-info", "_build", "logs", "dist", "build", ".*_cache", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (path,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("sb3_dapo", "hyperparams", "tests", "examples", "docs", "benchmarks")
    suffixes = {".py", ".ipynb", ".md", ".yml", ".svg", ".png", ".css", ".typed"}
    needed = {str(path.relative_to(source)) for folder in folders for path in (source / folder).rglob("*")}
    needed = {name for name in needed if Path(name).suffix in suffixes}
    assert {"tests/envs.py", "docs/conf.py", "hyperparams/dapo.yml", "examples/minatar.ipynb"} <= needed
    assert needed <= packed
    assert {"pyproject.toml", "setup.cfg", "Makefile", "constraints.txt", "CHANGELOG.md", "CITATION.cff"} <= packed
    assert not [name for name in packed if "_build" in name or "__pycache__" in name]


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sb3_dapo.__version__
    assert {"cff-version", "message", "title", "authors", "type", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["year"] == 2019 and "2501.15034" in paper["url"]


def test_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(sb3_dapo.__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", headings[0])


def test_workflows_run_on_the_supported_versions() -> None:
    workflow = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata("sb3-dapo").get_all("Classifier", [])))
    assert versions == supported
    assert metadata("sb3-dapo")["Requires-Python"] == f">={versions[0]}"


@pytest.mark.parametrize("name", ["ci.yml", "publish.yml"])
def test_workflows_run_what_there_is(name: str) -> None:
    workflow = yaml.safe_load((WORKFLOWS / name).read_text())
    assert workflow["permissions"] == {"contents": "read"}
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in commands:
        for target in re.findall(r"^make (\w+)", command):
            assert target in targets
        for path in re.findall(r"tests/\w+\.py", command):
            assert (ROOT / path).is_file()


@pytest.mark.parametrize(
    ("tag", "section", "is_released"),
    [
        ("v0.1.0", "## 0.1.0 (2026-12-01)", True),
        ("v0.1.0", "## 0.1.0 (unreleased)", False),
        ("v0.1.1", "## 0.1.0 (2026-12-01)", False),
    ],
)
def test_a_tag_is_published_only_with_its_changelog(tmp_path: Path, tag: str, section: str, is_released: bool) -> None:
    steps = yaml.safe_load((WORKFLOWS / "publish.yml").read_text())["jobs"]["build"]["steps"]
    (check,) = [step["run"] for step in steps if step.get("name", "").startswith("The changelog")]
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{section}\n")
    result = subprocess.run(
        ["bash", "-c", check], cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert (result.returncode == 0) == is_released

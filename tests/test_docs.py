"""The README and the pages of docs/: their code runs, their links lead somewhere, and they name all that there is."""

import csv
import functools
import inspect
import io
import re
import runpy
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from stable_baselines3.common.logger import configure

from sb3_dapo import DAPO

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: an estimate with its interval, as in the tables of the results
INTERVAL = r"(\d\.\d\d)\s\[(\d\.\d\d),\s(\d\.\d\d)\]"
EXTRAS = ("ale_py", "minatar", "mujoco", "rl_zoo3", "sb3_contrib")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """
    :param page: Markdown file
    :param language: what follows the opening fence
    :return: the page's code blocks in that language
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def first_column(page: Path) -> set[str]:
    """
    :param page: Markdown file
    :return: what stands between backticks in the first column of the page's tables
    """
    cells = re.findall(r"^\|([^|]*)\|", page.read_text(), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def slug(heading: str) -> str:
    """
    :param heading: text of a heading
    :return: its anchor, as GitHub and MyST build it
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page are one program: they run in order and share their names."""
    code = "\n".join(blocks(page, "python"))
    for module in EXTRAS:
        if module in code:
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_internal_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            anchors = {slug(heading) for heading in re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)}
            assert anchor in anchors, f"{page.name} links to {target}, but {file.name} has no such heading"


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = re.findall(r"^```\{toctree\}.*?^```$", (ROOT / "docs/index.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = set(re.findall(r"^(\w+)$", "\n".join(contents), flags=re.MULTILINE))
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_every_argument_is_documented() -> None:
    arguments = set(inspect.signature(DAPO.__init__).parameters) - {"self"}
    assert first_column(ROOT / "docs/from_ppo.md") == arguments


@functools.cache
def logged_keys(folder: Path) -> frozenset[str]:
    """
    :param folder: where to write
    :return: every key that short runs log, over settings that log different keys
    """
    keys: set[str] = set()
    runs: list[tuple[str, dict[str, Any]]] = [
        ("CartPole-v1", {"clip_range_vf": 0.2, "n_rollouts": 2}),
        ("Pendulum-v1", {"nonfinite": "skip"}),
    ]
    for env, settings in runs:
        model = DAPO("MlpPolicy", env, n_steps=256, n_epochs=2, device="cpu", **settings)
        model.set_logger(configure(str(folder / env), ["csv"]))
        model.learn(3 * 256)
        with (folder / env / "progress.csv").open() as file:
            keys |= set(next(csv.reader(file)))
    return frozenset(keys)


def test_every_logged_key_is_documented(tmp_path: Path) -> None:
    documented = {key for key in first_column(ROOT / "docs/metrics.md") if "/" in key}
    logged = logged_keys(tmp_path)
    assert logged <= documented
    assert {key for key in documented if key.startswith("train/")} <= logged


SHELL_LINES = [
    pytest.param(line, id=f"{page_id(page)}: {line}")
    for page in PAGES
    for block in blocks(page, "sh")
    for line in map(str.strip, block.replace("\\\n", " ").splitlines())
    if re.match(r"(sb3-dapo|make) ", line)
]


@functools.cache
def options(command: str) -> frozenset[str]:
    """
    :param command: of ``sb3-dapo``
    :return: the options that its help lists
    """
    from sb3_dapo.zoo.cli import main

    output = io.StringIO()
    with mock.patch("sys.argv", ["sb3-dapo", command, "--help"]), redirect_stdout(output), pytest.raises(SystemExit):
        main()
    return frozenset(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", output.getvalue()))


@pytest.mark.parametrize("line", SHELL_LINES)
def test_commands_exist(line: str) -> None:
    """Every command that the pages tell to type exists, with every option that they give it."""
    program, command, *arguments = line.split("#")[0].split()
    if program == "make":
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    pytest.importorskip("rl_zoo3")
    given = {argument.split("=")[0] for argument in arguments if re.match(r"--?[a-zA-Z]", argument)}
    assert given <= options(command)


@pytest.mark.parametrize("page", [page for page in PAGES if re.search(INTERVAL, page.read_text())], ids=page_id)
def test_intervals_are_those_of_the_results(page: Path) -> None:
    """Estimates are copied from the tables that the CSV files are turned into: new results make the pages stale."""
    tables = "".join(path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md"))
    measured = set(re.findall(INTERVAL, tables))
    assert [numbers for numbers in re.findall(INTERVAL, page.read_text()) if numbers not in measured] == []


def test_multi_step_figure_shows_what_its_caption_says() -> None:
    """Its script is run with the estimators as they are; the caption is in docs/algorithm.md."""
    script = runpy.run_path(str(ROOT / "docs/figures/multi_step.py"))
    f, divergences = script["example"]()
    last, (first_change, second_change) = script["LAST_OF_FIRST_EPISODE"], script["CHANGES"]
    assert f.nonzero().flatten().tolist() == [first_change, second_change]
    assert divergences[0].equal(f)
    charged = divergences[3].nonzero().flatten().tolist()
    assert charged == [*range(first_change - 3, first_change + 1), *range(second_change - 3, second_change + 1)]
    whole = divergences[None]
    assert whole.nonzero().flatten().tolist() == [*range(first_change + 1), *range(last + 1, second_change + 1)]
    assert (whole[1 : first_change + 1] > whole[:first_change]).all()

"""The built documentation: what a page refers to exists, and in a browser it is readable, on a phone too."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

for module in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "sphinx-mathjax-offline"):
    pytest.importorskip(module)

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 390)  # of a desktop and of a phone, in CSS pixels
HARNESS = "/harness.html"

# Opens each page in a frame, which to the page is a window of that width, and reports what is wrong there
SCRIPT = r"""
const [pages, widths] = ARGUMENTS;
const problems = [];

// Code, tables and formulas scroll in boxes of their own. That the theme lets the whole page scroll does not count.
function sticksOut(element, width) {
  const box = element.getBoundingClientRect();
  if (box.width === 0 || box.right <= width + 1 || element.closest("mjx-assistive-mml, .headerlink")) return false;
  for (let parent = element.parentElement; !parent.matches(".content, body"); parent = parent.parentElement)
    if (getComputedStyle(parent).overflowX !== "visible") return getComputedStyle(parent).overflowX === "hidden";
  return true;
}

function check(page, width, document) {
  const report = (text) => problems.push(`${page}, ${width} px: ${text}`);
  const article = document.querySelector("article");
  if (document.documentElement.scrollWidth > width) report(`${document.documentElement.scrollWidth} px wide`);
  for (const image of document.images)
    if (image.naturalWidth === 0) report(`image ${image.getAttribute("src")} did not load`);
  for (const math of document.querySelectorAll(".math"))
    if (!math.querySelector("mjx-container")) report(`formula not set: ${math.textContent}`);
  for (const error of document.querySelectorAll("mjx-merror")) report(`formula is wrong: ${error.textContent}`);
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.data.trim();
    if (text === "" || element.closest("mjx-container, script, style")) continue;
    if (/\$|\\\(|\{\w+\}`/.test(text) && !element.closest("pre, code")) report(`markup in the text: ${text}`);
    if (parseFloat(getComputedStyle(element).fontSize) < 11) report(`text is too small: ${text}`);
  }
  const widest = [...article.querySelectorAll("*")].find((element) => sticksOut(element, width));
  if (widest) report(`sticks out: ${widest.tagName} ${widest.textContent.trim().slice(0, 60)}`);
}

async function visit(page) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; height: 900px; width: ${widths[0]}px`;
  const loaded = new Promise((resolve) => (frame.onload = resolve));
  frame.src = page;
  document.body.append(frame);
  await loaded;
  const {contentWindow: window, contentDocument: inner} = frame;
  if (window.MathJax?.startup) await window.MathJax.startup.promise;
  for (const image of inner.images) {
    image.loading = "eager";
    await image.decode().catch(() => {});
  }
  for (const width of widths) {
    frame.style.width = `${width}px`;
    await new Promise((resolve) => window.requestAnimationFrame(resolve));
    check(page, width, inner);
  }
  for (const entry of window.performance.getEntriesByType("resource"))
    if (new URL(entry.name).origin !== location.origin) problems.push(`${page} loads ${entry.name}`);
  frame.remove();
}

(async () => {
  for (const page of pages) await visit(page).catch((error) => problems.push(`${page}: ${error}`));
  await fetch("/problems", {method: "POST", body: JSON.stringify(problems)});
})();
"""


class Page(HTMLParser):
    """
    :param path: file of a page
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.parts: set[str] = set()  # what the browser loads to show the page
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon") and "href" in values:
            self.parts.add(values["href"])
        if tag in ("img", "script", "source", "video", "iframe") and "src" in values:
            self.parts.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as HTML. That it is built without a warning is for `make docs` to say."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(folder / ".doctrees")]
    process = subprocess.run([*command, str(ROOT / "docs"), str(folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


def test_links_and_figures_exist(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    assert set(pages) >= {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    missing = []
    for name, page in pages.items():
        for target in page.links | page.parts:
            if urlsplit(target).scheme in ("http", "https", "mailto", "data", "javascript"):
                if target in page.parts and urlsplit(target).scheme != "data":
                    missing.append(f"{name} loads {target}, which is not part of it")
                continue
            path, anchor = urldefrag(unquote(urljoin(name, target.partition("?")[0] or target)))
            if not (site / path).is_file():
                missing.append(f"{name} refers to {target}, which does not exist")
            elif anchor and path in pages and anchor not in pages[path].anchors:
                missing.append(f"{name} links to {target}, but {path} has no such anchor")
    assert not missing, "\n".join(missing)


class Handler(SimpleHTTPRequestHandler):
    """
    Serves the pages and the page that looks at them, and takes its report.

    :param args: as in the base class
    :param reports: where the report goes
    :param kwargs: as in the base class
    """

    def __init__(self, *args: Any, reports: "Queue[list[str]]", **kwargs: Any) -> None:
        self.reports = reports
        super().__init__(*args, **kwargs)

    def log_message(self, *args: Any) -> None:
        pass

    def send_page(self, content: bytes = b"") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.path != HARNESS:
            super().do_GET()
            return
        pages = sorted(f"/{path.name}" for path in Path(self.directory).glob("*.html"))
        script = SCRIPT.replace("ARGUMENTS", json.dumps([pages, WIDTHS]))
        self.send_page(f"<!doctype html><meta charset=utf-8><body><script>{script}</script>".encode())

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_page()


@pytest.fixture
def server(site: Path) -> Iterator[tuple[str, "Queue[list[str]]"]]:
    """A server of the pages: its address, and where its reports arrive."""
    reports: Queue[list[str]] = Queue()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site), reports=reports)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", reports
        server.shutdown()


def test_pages_in_a_browser(server: tuple[str, "Queue[list[str]]"], tmp_path: Path) -> None:
    """Figures load, formulas are set, and nothing sticks out, on a desktop and on a phone."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("needs Chromium")
    url, reports = server
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    options += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options += ["--disable-sync", "--no-proxy-server", f"--user-data-dir={tmp_path}", "--window-size=1280,900"]
    browser = subprocess.Popen(
        # Without an address to write to, it would print the page and end
        [program, *options, "--remote-debugging-port=0", url + HARNESS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        problems = reports.get(timeout=200)
    finally:
        browser.terminate()
        browser.wait()
    assert not problems, "\n".join(problems)

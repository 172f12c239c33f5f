"""The Chromium of this machine, and what it makes of a page that has no scripts of its own."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOT_INSTALLED = "Chromium is not installed; `apt-get install chromium` brings it"

# The page stands in a frame as wide as a phone: headless Chromium's own window cannot be that narrow. The page's policy
# forbids scripts in it, not in the page around it, which looks in and writes down what it sees.
_AROUND = """<!DOCTYPE html><meta charset="utf-8"><pre id="seen"></pre>
<iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
document.getElementById('frame').onload = ({{target}}) => {{  // all at once: virtual time does not wait for promises
  const d = target.contentDocument, root = d.documentElement;
  for (const fold of d.querySelectorAll('details')) fold.open = true;
  const outside = e => e.getBoundingClientRect().right > {width} + 0.5;
  const look = {look};
  document.getElementById('seen').textContent = JSON.stringify({{
    title: d.title, scripts: d.scripts.length, images: d.images.length,
    broken: [...d.images].filter(i => !i.naturalWidth).length,
    scroll: root.scrollWidth, client: root.clientWidth, ...look(d, outside) }});
}};
</script>"""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips without a Chromium that can open a file here; a confined package may be there and see no test's files."""
    if CHROMIUM is None:
        pytest.skip(NOT_INSTALLED)
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.html").write_text("<p>it opens</p>")
    done = _dump_dom((folder / "probe.html").as_uri(), folder / "profile")
    if "it opens" not in done.stdout:
        pytest.skip(f"{CHROMIUM} is there and cannot show a file: {done.stderr[-300:]}")


def look_at(page: str, folder: Path, width: int, look: str) -> dict[str, Any]:
    """What a real browser makes of a page in a frame of `width` pixels, its folds open; console messages are errors.

    Title, counts of scripts, images and broken ones, `scroll` and `client` width; and what `look` returns, a JavaScript
    function of the page's document and of a function that says whether an element sticks out on the right.
    """
    wrapper = folder / f"look_{width}.html"
    wrapper.write_text(_AROUND.format(width=width, page=html.escape(page), look=look), encoding="utf-8")
    done = _dump_dom(wrapper.as_uri(), folder / "profile")
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert seen and seen[1], done.stdout[:2000] + done.stderr
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found


def _dump_dom(address: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Headless Chromium's output for an address, with the page's console on standard error."""
    assert CHROMIUM is not None
    quiet = ["--disable-background-networking", "--no-first-run", "--disable-component-update", "--disable-sync"]
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--window-size=1400,1000",
            "--virtual-time-budget=10000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

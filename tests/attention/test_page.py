"""The page is self-contained, and the pictures are complete, whatever the model's shape and the words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from stacking.attention.measure import Example
from stacking.attention.page import embedded, render, write_page
from stacking.attention.pictures import FORMATS, write_pictures
from stacking.attention.result import Attention, attention_of
from stacking.attention.tally import Tally
from tests.report.test_html import Page

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = ("[CLS]", "</script><script>document.title='broken'</script>", "$x_", "&amp;", "\u2028", "[SEP]")


def measured(layers: int = 4, heads: int = 3, window: int = 5) -> Attention:
    generator = np.random.default_rng(0)
    weights = generator.random((layers, 2, heads, 9, 9), dtype=np.float32)
    tally = Tally(layers, heads, window)
    separators = np.zeros((2, 9), bool)
    separators[:, -1] = True
    tally.add(weights / weights.sum(-1, keepdims=True), np.ones((2, 9), bool), separators)
    return attention_of(tally, "model", "text", 16)


def example(layers: int = 4, heads: int = 3, words: tuple[str, ...] = HOSTILE) -> Example:
    """A sentence in which every token attends only to the first."""
    probabilities = np.zeros((layers, heads, len(words), len(words)), dtype=np.uint8)
    probabilities[..., 0] = 255
    return Example(words, probabilities)


def test_the_page_is_complete_and_self_contained() -> None:
    text = render(measured(), [example()], Path("a <model>"))
    page = Page(text)
    assert page.open == [] and page.references == []
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text and "a &lt;model&gt;" in text


def test_its_numbers_match_the_measurement() -> None:
    attention = measured()
    text = render(attention, [example()], Path("model"))
    (content,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', text, flags=re.DOTALL)
    found = json.loads(content)
    assert found["heads"]["first"][2][1] == pytest.approx(attention.heads.first[2][1], rel=1e-4)
    assert tuple(found["examples"][0]["words"]) == HOSTILE


def test_words_cannot_leave_their_script_element() -> None:
    text = embedded({"words": list(HOSTILE)})
    assert not set("<>&\u2028") & set(text) and json.loads(text)["words"] == list(HOSTILE)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (24, 16)])
def test_pictures_of_any_shape_are_written_in_every_format(layers: int, heads: int, tmp_path: Path) -> None:
    write_pictures(measured(layers, heads), [example(layers, heads)], tmp_path)
    assert {path.suffix[1:] for path in tmp_path.iterdir()} == set(FORMATS)
    assert len(list(tmp_path.iterdir())) == 4 * len(FORMATS)
    for path in tmp_path.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_measurement_draws_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_pictures(measured(), [example()], tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_no_sentence_picture_without_a_sentence(tmp_path: Path) -> None:
    write_pictures(measured(), [], tmp_path)
    assert not list(tmp_path.glob("sentence.*"))
    assert 'id="sentences" hidden' in render(measured(), [], Path("model"))


DRIVER = """
<script>
addEventListener("load", () => setTimeout(() => {
  const errors = window.errors, at = id => document.getElementById(id);
  at("heads").querySelector('[data-at="2,1"]').click();
  const words = at("words").querySelectorAll("button");
  words[1].dispatchEvent(new MouseEvent("mouseenter"));
  const from = words[0].title;
  at("direction").value = "to";
  at("direction").dispatchEvent(new Event("change"));
  const to = words[0].title;
  at("measure").value = "entropy";
  at("measure").dispatchEvent(new Event("change"));
  at("matrix").value = "divergence";
  at("matrix").dispatchEvent(new Event("change"));
  at("heads").querySelector('[data-at="2,1"]').dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp"}));
  const seen = {errors, from, to, chosen: at("chosen").textContent,
    cells: at("heads").querySelectorAll("button").length,
    layers: at("layers").querySelectorAll("button").length, words: [...words].map(w => w.textContent),
    title: document.title, paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color, wide: document.documentElement.scrollWidth > innerWidth};
  document.documentElement.innerHTML = "<pre id='seen'></pre>";
  document.getElementById("seen").textContent = JSON.stringify(seen);
}, 50));
</script>
"""
WATCH = "<script>window.errors = []; addEventListener('error', event => errors.push(event.message));</script>"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, to render the page as a reader's browser does")
@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(253, 253, 251)"), ("dark", "rgb(27, 27, 26)")])
def test_a_browser_renders_it_and_reacts_to_the_pointer(scheme: str, paper: str, tmp_path: Path) -> None:
    write_page(measured(), [example()], tmp_path, Path("model"))
    text = (tmp_path / "attention.html").read_text(encoding="utf-8")
    driven = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{DRIVER}</body>")
    (tmp_path / "driven.html").write_text(driven, encoding="utf-8")
    seen = _seen(tmp_path / "driven.html", scheme)
    assert seen["errors"] == [] and seen["title"] == "model: attention"
    assert seen["from"] == "100.0 %" and seen["to"] == "0.0 %"
    assert (seen["chosen"], seen["cells"], seen["layers"]) == ("Layer 4, head 2", 12, 16)
    assert tuple(seen["words"]) == HOSTILE and not seen["wide"]
    assert seen["paper"] == paper and seen["ink"] != seen["paper"]


def _seen(page: Path, scheme: str) -> dict[str, object]:
    """What the driver in the page found, in a separate browser that prefers this colour scheme."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    argv = [BROWSER, *options, profile, preferred, page.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    text = found.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u00a0").replace("&amp;", "&")
    content: dict[str, object] = json.loads(text)
    return content

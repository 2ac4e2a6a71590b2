"""The report in a real Chromium: narrow and wide, light and dark."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from chromium import look
from playwright.sync_api import Browser
from report_runs import OFFLINE, ONLINE

from draftyard_api.exit_codes import ExitCode
from draftyard_trainer import commands

READABLE = 4.5
"""WCAG AA for text of any size."""
GRAPHICAL = 3.0
"""WCAG AA for what is drawn."""


@pytest.fixture(scope="module")
def reports(workshop, tmp_path_factory) -> dict[str, Path]:
    """The report of a run with everything, one of a run with very little, and a comparison."""
    folder, root = tmp_path_factory.mktemp("reports"), workshop.store.root
    pages = {name: folder / f"{name}.html" for name in ("whole", "bare", "compared")}
    assert commands.report([str(root), "--run", OFFLINE, "--out", str(pages["whole"])]) == ExitCode.OK
    (folder / "nearly-empty/runs/new-run/prepare").mkdir(parents=True)
    (folder / "nearly-empty/runs/new-run/prepare/task.json").write_text("{}")
    assert commands.report([str(folder / "nearly-empty"), "--out", str(pages["bare"])]) == ExitCode.OK
    runs = [f"{root}:{OFFLINE}", f"{root}:{ONLINE}"]
    assert commands.compare([*runs, "--html", str(pages["compared"])]) == ExitCode.OK
    return pages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize(("name", "draws"), [("whole", True), ("compared", True), ("bare", False)])
def test_a_page_is_right_at_every_width_and_in_both_schemes(
    browser: Browser, reports: dict[str, Path], name: str, draws: bool, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    looked = look(context, reports[name], draws)
    looked.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert looked.complaints == []
    assert looked.requests == []
    space = looked.measure("overflow")
    assert space["sticking"] == []
    assert space["page"] <= space["window"] == width
    texts = looked.measure("texts")
    assert len(texts) > 20
    assert [text for text in texts if text["contrast"] < READABLE] == []
    if draws:
        assert any(text["drawn"] for text in texts), "no plot has a text"
        shown = looked.measure("plots")
        assert len(shown) >= 5
        assert {plot: count for plot, count in shown.items() if not count} == {}
    context.close()


def test_plots_follow_the_reader_from_light_to_dark(browser: Browser, reports: dict[str, Path]) -> None:
    context = browser.new_context(viewport={"width": 1000, "height": 900}, color_scheme="light")
    looked = look(context, reports["whole"])
    light = looked.measure("inks")
    looked.page.emulate_media(color_scheme="dark")
    looked.page.wait_for_selector("html[data-drawn='2']", state="attached")
    dark = looked.measure("inks")
    assert len(dark) == len(light)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert [text for text in looked.measure("texts") if text["contrast"] < READABLE] == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_can_be_told_from_what_is_behind_them(browser: Browser, reports: dict[str, Path], scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    ratios = look(context, reports["bare"], draws=False).measure("palette")
    assert len(ratios) == 11
    assert {name: ratio for name, ratio in ratios.items() if ratio < GRAPHICAL} == {}
    context.close()


def test_a_hover_reads_out_values(browser: Browser, reports: dict[str, Path]) -> None:
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    looked = look(context, reports["whole"])
    plot = looked.page.locator("#plot-acceptance")
    plot.scroll_into_view_if_needed()
    plot.hover()
    looked.page.wait_for_selector("#plot-acceptance .hoverlayer text")
    said = looked.page.locator("#plot-acceptance .hoverlayer").text_content()
    assert said is not None
    assert "held out" in said
    context.close()


def test_the_copy_button_copies_the_command(browser: Browser, reports: dict[str, Path]) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    looked = look(context, reports["whole"])
    button = looked.page.get_by_role("button", name="Copy the command for vLLM")
    button.click()
    looked.page.wait_for_selector("[data-copies=serve-vllm]:has-text('Copied')")
    copied = looked.page.evaluate("() => navigator.clipboard.readText()")
    words = shlex.split(copied)
    assert words[:2] == ["vllm", "serve"]
    assert json.loads(words[words.index("--speculative-config") + 1])["num_speculative_tokens"] == 3
    context.close()

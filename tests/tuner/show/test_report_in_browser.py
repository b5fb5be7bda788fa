"""The report in a real browser, at the width of a phone and of a desk."""

from __future__ import annotations

import pytest
from browser import WIDTHS, open_page

from attnpass.tuner.show import write_report
from attnpass.tuner.show.figures import measured


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    return write_report(finished.result, tmp_path_factory.mktemp("report") / "r.html")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_fetched_nothing_fails_and_the_page_does_not_scroll_sideways(
    report, width, scheme
):
    with open_page(report, width, scheme) as opened:
        opened.page.wait_for_selector("#front .main-svg")
        wide = opened.page.evaluate("document.documentElement.scrollWidth")
        assert opened.errors == [] and wide <= width
        assert [u for u in opened.requests if not u.startswith(("file:", "data:"))] == []
        ink = opened.page.evaluate("getComputedStyle(document.body).color")
        assert ink == {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 234, 238)"}[scheme]
        # the figures wear the same colour
        tick = opened.page.evaluate("getComputedStyle(document.querySelector('#front text')).fill")
        assert tick == ink


@pytest.mark.parametrize("width", WIDTHS)
def test_hovering_shows_the_layers_and_a_click_the_code(report, finished, width):
    rows = measured(finished.result)
    with open_page(report, width) as opened:
        page = opened.page
        page.wait_for_selector("#front .main-svg")
        points = page.locator("#front .scatterlayer .point")
        assert points.count() >= len(rows)
        page.locator("#front").scroll_into_view_if_needed()
        box = points.first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("#front .hoverlayer text")
        told = page.locator("#front .hoverlayer").text_content()
        plan = next(row for row in rows if row.plan in told)
        assert "|" in told  # the form of every layer
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator("#plan").input_value() == plan.plan
        assert f"attnpass export {plan.plan}" in page.locator("#code").text_content()
        assert opened.errors == []


def test_the_keyboard_chooses_plans_and_reaches_every_table(report, finished):
    rows = measured(finished.result)
    with open_page(report, 1280) as opened:
        page = opened.page
        page.wait_for_selector("#front .main-svg")
        for row in rows:
            page.locator("#plan").focus()
            page.locator("#plan").select_option(row.plan)
            assert row.plan in page.locator("#code").text_content()
            first = next(iter(row.forms))
            assert f"{first}: {row.forms[first]}" in page.locator("#layers").text_content()
        assert page.locator("label[for=plan]").count() == 1
        tables = page.locator(".wide")
        assert all(tables.nth(i).get_attribute("tabindex") == "0" for i in range(tables.count()))
        assert page.locator("[role=img]:not([aria-label])").count() == 0

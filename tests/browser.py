"""Pages in a real browser without a screen: chromium, driven by playwright.

``pip install playwright`` and Debian's ``chromium`` bring both; ``open_page`` skips a test where
they are missing, ``make browser`` insists on them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (380, 1280)


@dataclass
class Opened:
    """A page, with what its console and its requests said."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def open_page(file: Path, width: int, scheme: str = "light") -> Iterator[Opened]:
    """A file of this machine in a window of so many pixels."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        if os.environ.get("ATTNPASS_BROWSER") == "1":
            pytest.fail("expected chromium and playwright, found none")
        pytest.skip("needs chromium and playwright (make browser)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        found = Opened(context.new_page())
        found.page.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else 0)
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda r: found.requests.append(r.url))
        found.page.goto(file.resolve().as_uri())
        yield found
        browser.close()

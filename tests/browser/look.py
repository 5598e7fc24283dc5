"""How a page is looked at: by axe, for what goes wrong behind it, and by people, who want screenshots."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, Response

# Where pictures of the pages are kept; unset: nowhere.
SCREENSHOTS = os.environ.get("SCREENSHOTS", "")
SERIOUS = ("serious", "critical")


class Watched:
    """A browser's window, and what went wrong in it, but for what a test wants to go wrong (a pattern)."""

    def __init__(self, context: BrowserContext, port: int, but: str) -> None:
        self.context, self.own, self.but = context, f"127.0.0.1:{port}", but
        self._found: list[str] = []
        context.on("console", self._said)
        context.on("weberror", lambda error: self._found.append(f"error: {error.error}"))
        context.on("request", self._asked)
        context.on("requestfailed", self._failed)
        context.on("response", self._answered)

    @property
    def faults(self) -> list[str]:
        return [fault for fault in self._found if not (self.but and re.search(self.but, fault))]

    def _said(self, message: ConsoleMessage) -> None:
        """The browser itself reports here what the policy stopped."""
        if message.type in ("error", "warning"):
            at = message.location
            self._found.append(f"console: {message.text} ({at.get('url')}:{at.get('lineNumber')})")

    def _asked(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != self.own:
            self._found.append(f"another host: {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left
            self._found.append(f"failed: {request.url} {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._found.append(f"{response.status}: {response.url}")


def screenshot(page: Page, name: str, *, whole: bool = True) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=whole)


def inaccessible(page: Page) -> list[str]:
    """Serious faults for people who can't see well, or use no mouse."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [_fault(page, one) for one in found if one["impact"] in SERIOUS]


def _fault(page: Page, fault: dict) -> str:
    places = [
        f"    {node['html'][:300]}\n      {' '.join(node['failureSummary'].split())}" for node in fault["nodes"][:5]
    ]
    return "\n".join([f"{page.url} {fault['id']} ({fault['impact']}): {fault['help']}", *places])


def too_wide(page: Page) -> list[str]:
    """Nobody should have to scroll sideways to read the page itself."""
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [f"{page.url} is {over} pixels wider than the screen"] if over > 0 else []


def give_reason(page: Page) -> None:
    """On the page that asks for it; nobody is asked twice within the hour."""
    if "/reason/" in page.url:
        page.get_by_label("What for").select_option("Something doesn't work")
        page.get_by_label("Why, in your words").fill("Ticket 4711: no answer came")
        page.get_by_role("button", name="Read", exact=True).click()

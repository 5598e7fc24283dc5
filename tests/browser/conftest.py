"""The desk in a real Chromium, against the real service: one browser and one server for each process of the run.

A test takes `desk` and opens pages as a member of staff. It fails by itself when a page logs an error, breaks its
policy, asks another host for something, or when a request fails. The service has a database of its own, with the
personas of the seed and a chat; tests of this folder touch no other, for Playwright keeps an event loop running here.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, StorageState, expect, sync_playwright

from tests.browser.look import Watched
from tests.fake_gemini import FakeGemini
from tests.media_uploads.conftest import form, png
from tests.servers import Server, environment, free_port, manage, running

PASSWORD = "a-password-for-tests"
# Who works here, and the group that gives the rights.
CAST = {
    "root": "",  # the superuser
    "editor": "Content editors",
    "publisher": "Publishers",
    "support": "Support",
    "analyst": "Analysts",
    "newcomer": "no group at all",
}
MAKE_CAST = f"""
from django.contrib.auth.models import Group, User
from django.contrib.auth.hashers import make_password
password = make_password({PASSWORD!r})
for name, group in {CAST!r}.items():
    user = User.objects.create(username=name, password=password, is_staff=True, is_superuser=not group)
    user.groups.set(Group.objects.filter(name=group))
"""
A_MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # it hears beeps
PATIENCE = 15_000  # milliseconds, on a busy machine
PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1400, "height": 900}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.own_database)
            item.add_marker(pytest.mark.drill)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, gemini_server: FakeGemini) -> Iterator[Server]:
    """Migrated and seeded, with the cast and a chat of alice's."""
    gemini_server.reset()  # it may still fail as another test told it to
    folder = tmp_path_factory.mktemp("browser")
    development = {"ENVIRONMENT": "development", "WEB_CONCURRENCY": "1", "MEDIA_UPLOAD_DIR": f"{folder}/uploads"}
    development["TRUSTED_PROXIES"] = "127.0.0.1"  # so that a browser may come from elsewhere
    env = environment(folder, gemini_server.url, free_port(), **development)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "shell", "--verbosity", "0", "-c", MAKE_CAST)
    with running("gunicorn", env, folder) as server:
        talk = server.open(server.influencers[0], "alice")
        assert server.send(talk, "How do I begin again after a long pause?", "alice").status == 200
        kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
        picture = form(png(640, 480), "image")
        assert server.call("POST", "/api/v1/media/upload", picture, "alice", **kind).status == 200
        yield server
        assert not server.trouble


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's. Closed after the last test of this folder, and its event loop with it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        assert "CI" not in os.environ, "CI must test in a browser: chromium isn't installed."
        pytest.skip("chromium isn't installed: the desk wasn't tested in a browser.")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=[*as_root, *A_MICROPHONE])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def logged_in(chromium: Browser, service: Server) -> Callable[[str], StorageState | None]:
    """What a browser keeps of a login by the form, done once for each person; of nobody ("") nothing."""
    kept: dict[str, StorageState] = {}

    def state(user: str) -> StorageState | None:
        if user and user not in kept:
            context = chromium.new_context(base_url=f"http://127.0.0.1:{service.port}")
            page = context.new_page()
            page.goto("/admin/")
            page.get_by_label("Username").fill(user)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url("**/admin/")
            kept[user] = context.storage_state()
            context.close()
        return json.loads(json.dumps(kept[user])) if user else None

    return state


Desk = Callable[..., Page]


@pytest.fixture
def desk(
    chromium: Browser, service: Server, logged_in: Callable[[str], StorageState | None], gemini: FakeGemini
) -> Iterator[Desk]:
    """Opens the address in a browser of its own: `desk("/admin/", user="editor", dark=True, phone=True)`.

    `but` is a pattern of faults that the test wants; `address` is where the browser seems to be.
    """
    watched: list[Watched] = []

    def visit(
        path: str = "/admin/",
        *,
        user: str = "root",
        dark: bool = False,
        phone: bool = False,
        but: str = "",
        address: str = "127.0.0.1",
    ) -> Page:
        context = chromium.new_context(
            base_url=f"http://127.0.0.1:{service.port}",
            storage_state=logged_in(user),
            viewport=PHONE if phone else LAPTOP,  # type: ignore[arg-type]
            has_touch=phone,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            extra_http_headers={"X-Forwarded-For": address},
        )
        context.set_default_timeout(PATIENCE)
        watched.append(Watched(context, service.port, but))
        page = context.new_page()
        page.goto(path)
        return page

    yield visit
    faults = [fault for one in watched for fault in one.faults]
    for one in watched:
        one.context.close()
    assert not faults, "\n".join(faults)

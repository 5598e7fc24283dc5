"""Who comes to the admin: from which networks, at which address, and after how many wrong passwords."""

import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib import reload
from pathlib import Path
from typing import Any

import pytest
import time_machine
from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches, set_urlconf
from django.utils import timezone

from conversations.models import Conversation
from tests.conftest import Api
from tests.conversations.test_races import at_once
from yral_chat import counters, urls

LOGIN = "/admin/login/"
PASSWORD = "a-password-for-tests"
OFFICE, HOME = "198.51.100.7", "203.0.113.9"


def try_password(password: str = "wrong", *, user: str = "editor", address: str = OFFICE, **headers: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Client(REMOTE_ADDR=address).post(LOGIN, {"username": user, "password": password}, headers=headers)


def fail(times: int, **given: Any) -> None:
    for _ in range(times):
        assert try_password(**given).status_code in (200, 429)


# Wrong passwords


def test_five_wrong_passwords_lock_the_name_at_that_address(editor: User) -> None:
    for _ in range(4):
        assert try_password().status_code == 200

    refused = try_password()

    assert refused.status_code == 429
    assert refused["Retry-After"] == "900"
    assert "15 minutes" in refused.content.decode()
    assert try_password(PASSWORD).status_code == 429, "even the right one"
    assert AccessAttempt.objects.get().failures_since_start >= 5


def test_neither_the_colleague_nor_another_address_is_locked(editor: User, superuser: User) -> None:
    fail(6)

    assert try_password(PASSWORD, user="root").status_code == 302
    assert try_password(PASSWORD, address=HOME).status_code == 302


def test_four_wrong_ones_are_forgiven_by_the_right_one(editor: User) -> None:
    for _ in range(3):
        fail(4)
        assert try_password(PASSWORD).status_code == 302


def test_the_lock_opens_by_itself_and_trying_on_does_not_prolong_it(editor: User) -> None:
    now = timezone.now()
    with time_machine.travel(now, tick=False) as clock:
        fail(5)
        clock.shift(timedelta(minutes=14))
        assert try_password(PASSWORD).status_code == 429
        clock.shift(timedelta(minutes=2))
        assert try_password(PASSWORD).status_code == 302


def test_the_lock_does_not_tell_whether_the_name_exists(editor: User) -> None:
    fail(5)
    fail(5, user="nobody")

    said = [try_password(user=user).content.decode() for user in ("editor", "nobody")]
    assert len({re.sub(r'nonce="[^"]*"|name="csrfmiddlewaretoken" value="[^"]*"', "", page) for page in said}) == 1


def test_a_forged_address_does_not_evade_the_lock(editor: User) -> None:
    for n in range(6):
        last = try_password(X_Forwarded_For=f"192.0.2.{n}", X_Real_IP=f"192.0.2.{n}", Forwarded=f"for=192.0.2.{n}")

    assert last.status_code == 429


def test_another_address_of_the_same_ipv6_network_does_not_evade_the_lock(editor: User) -> None:
    for n in range(5):
        last = try_password(address=f"2001:db8:1:2::{n}:1")

    assert last.status_code == 429
    assert try_password(PASSWORD, address="2001:db8:1:2:ffff::1").status_code == 429
    assert try_password(PASSWORD, address="2001:db8:1:3::1").status_code == 302


@pytest.mark.django_db
def test_logins_of_a_network_are_limited_whatever_the_names(settings: Any, tmp_path: Path) -> None:
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    settings.ADMIN_LOGINS_PER_MINUTE = 10
    with time_machine.travel(timezone.now().replace(second=20, microsecond=0), tick=False) as clock:
        answers = [try_password(user=f"name-{n}", address=f"2001:db8:1:2::{n}") for n in range(12)]

        assert [one.status_code for one in answers] == [200] * 10 + [429] * 2
        assert answers[-1]["Retry-After"] == "40"
        assert "in a minute" in answers[-1].content.decode()
        assert try_password(address=HOME).status_code == 200
        assert Client(REMOTE_ADDR="2001:db8:1:2::1").get(LOGIN).status_code == 200, "the form itself is free"
        clock.shift(timedelta(seconds=40))
        assert try_password(address="2001:db8:1:2::1").status_code == 200
    counters.close()


@pytest.mark.django_db(transaction=True)
def test_passwords_that_are_tried_all_at_once_are_few(settings: Any, tmp_path: Path) -> None:
    """Else the right one of thirty would be let in before any of the wrong ones counts."""
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    settings.ADMIN_LOGINS_PER_MINUTE = 10
    answers = [one.status_code for one in at_once(*(partial(try_password, f"wrong-{n}") for n in range(30)))]
    counters.close()

    assert Counter(answers)[200] <= 20, "two minutes at most"
    assert Counter(answers)[429] >= 10


def test_another_browser_does_not_evade_the_lock(editor: User) -> None:
    for n in range(6):
        last = try_password(User_Agent=f"Browser/{n}", Accept=f"text/{n}")

    assert last.status_code == 429


def test_another_spelling_of_the_name_does_not_evade_the_lock(editor: User) -> None:
    """The form takes all of these for the same name."""
    for spelling in ("editor", " editor", "editor ", "ｅｄｉｔｏｒ", "\teditor"):
        last = try_password(user=spelling)

    assert last.status_code == 429


def test_behind_a_trusted_proxy_each_client_has_its_own_lock(editor: User, settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    fail(5, address="10.0.0.5", X_Forwarded_For=OFFICE)

    assert try_password(PASSWORD, address="10.0.0.5", X_Forwarded_For=OFFICE).status_code == 429
    assert try_password(PASSWORD, address="10.0.0.5", X_Forwarded_For=f"{HOME}, {OFFICE}").status_code == 429
    assert try_password(PASSWORD, address="10.0.0.5", X_Forwarded_For=HOME).status_code == 302


def test_the_page_of_the_lock_allows_no_other_site_to_read_it(editor: User) -> None:
    fail(5)

    refused = try_password(X_Requested_With="XMLHttpRequest", Origin="https://evil.example")

    assert refused.status_code == 429
    assert not [name for name in refused.headers if name.lower().startswith("access-control")]


def test_odd_names_are_no_crash(db: None) -> None:
    for user in ("x" * 5000, "a\x00b", "", "';--", "देवी 🌱", "{0}%s"):
        assert try_password(user=user).status_code in (200, 400, 429)
    odd = try_password(User_Agent="x" * 5000, Accept="y" * 5000, X_Forwarded_For="z" * 5000)
    assert odd.status_code == 200
    fail(5, user="x" * 5000)
    assert try_password(user="x" * 5000).status_code == 429


def test_only_a_login_costs_statements(
    desk: Callable[[User], Client], superuser: User, alice: Api, conversation: Conversation
) -> None:
    client = desk(superuser)
    with CaptureQueriesContext(connection) as ran:
        client.get("/admin/")
        client.get("/admin/personas/influencer/")
        alice.messages(conversation)
    assert not [query for query in ran.captured_queries if "axes" in query["sql"]]


# Networks


@pytest.mark.parametrize("path", ["/admin", "/admin/", LOGIN, "/admin/personas/influencer/", "/admin/jsi18n/"])
@pytest.mark.parametrize("method", ["get", "post", "put"])
def test_from_elsewhere_there_is_no_admin(
    path: str, method: str, settings: Any, desk: Callable[[User], Client], superuser: User
) -> None:
    settings.ADMIN_ALLOWED_NETWORKS = ["198.51.100.0/24"]
    client = desk(superuser)

    refused = getattr(client, method)(path, REMOTE_ADDR=HOME)
    nothing = getattr(client, method)("/nothing", REMOTE_ADDR=HOME)

    assert (refused.status_code, refused.content) == (404, nothing.content)
    own = {"X-Correlation-ID"}
    assert {k: v for k, v in refused.items() if k not in own} == {k: v for k, v in nothing.items() if k not in own}
    assert getattr(client, method)(path, REMOTE_ADDR=OFFICE).status_code != 404


@pytest.mark.parametrize("path", ["/admin/../x", "/admin/..", "/admin/./x", "/admin/login/../../x", "/admin/%2e%2e/x"])
def test_what_a_proxy_takes_for_another_address_is_not_the_admin(path: str) -> None:
    """nginx would hand it on to the whole internet."""
    assert Client().get(path).status_code == 404


def test_a_bad_host_does_not_tell_either(settings: Any) -> None:
    settings.ADMIN_ALLOWED_NETWORKS, settings.ALLOWED_HOSTS = ["198.51.100.0/24"], ["chat.example"]

    answers = [Client().get(path, headers={"Host": "evil.example"}) for path in (LOGIN, "/nothing")]

    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "status"),
    [
        (HOME, OFFICE, 404),  # a stranger's word
        ("127.0.0.1", OFFICE, 404),
        ("10.0.0.5", OFFICE, 200),
        ("10.0.0.5", HOME, 404),
        ("10.0.0.5", f"{OFFICE}, {HOME}", 404),
        ("10.0.0.5", f"{HOME}, {OFFICE}", 200),
        ("10.0.0.5", f"::ffff:{OFFICE}", 200),
        ("10.0.0.5", "unknown", 404),
        ("10.0.0.5", "", 404),
        ("", OFFICE, 404),
    ],
)
def test_the_address_is_the_client_s_behind_trusted_proxies_alone(
    peer: str, forwarded_for: str, status: int, settings: Any, db: None
) -> None:
    settings.ADMIN_ALLOWED_NETWORKS, settings.TRUSTED_PROXIES = ["198.51.100.0/24"], ["10.0.0.0/8"]

    got = Client(REMOTE_ADDR=peer).get(LOGIN, headers={"X-Forwarded-For": forwarded_for})

    assert got.status_code == status


def test_the_api_is_for_every_network(settings: Any, alice: Api, conversation: Conversation) -> None:
    settings.ADMIN_ALLOWED_NETWORKS = ["198.51.100.0/24"]

    assert alice.messages(conversation).status_code == 200
    assert alice.get("/administration").status_code == 404


# Its address


def test_it_can_be_moved(settings: Any, desk: Callable[[User], Client], superuser: User) -> None:
    settings.ADMIN_PATH = "staff-7f3a/desk/"
    reload(urls)
    clear_url_caches()
    set_urlconf(None)
    try:
        client = desk(superuser)
        assert client.get("/staff-7f3a/desk")["Location"] == "/staff-7f3a/desk/"
        page = client.get("/staff-7f3a/desk/")
        assert page.status_code == 200
        assert "/admin/" not in re.sub(r"/static/admin/|/desk/admin/logentry/", "", page.content.decode())
        assert Client().get("/staff-7f3a/desk/")["Location"].startswith("/staff-7f3a/desk/login/")
        old = client.get("/admin/")
        assert (old.status_code, old["Content-Type"]) == (404, "application/json")
        assert client.get("/staff-7f3a/desk/nothing/")["Content-Type"].startswith("text/html")
        settings.ADMIN_ALLOWED_NETWORKS = ["198.51.100.0/24"]
        assert client.get("/staff-7f3a/desk/").status_code == 404
    finally:
        settings.ADMIN_PATH = "admin/"
        reload(urls)
        clear_url_caches()

"""The desk's statistics: who sees them, what they say, and that each figure leads to exactly its rows."""

import datetime as dt
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.models import Conversation, Message, Turn
from personas.models import Influencer
from tests.conftest import CANARY, Api
from tests.fake_gemini import REPLY, FakeGemini, blocks, fails
from tests.personas.page import Page

PAGE = "/admin/statistics/"
QUESTION = "Where did I put my running shoes?"

Desk = Callable[[User], Client]


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def chats(alice: Api, bob: Api, coach: Influencer, conversation: Conversation, gemini: FakeGemini) -> None:
    """Two answered questions of alice's, one of bob's, one that was blocked and one that failed."""
    talk = bob.open(coach)["id"]
    for who, where in ((alice, conversation), (alice, conversation), (bob, talk)):
        assert who.send(where, QUESTION).status_code == 200
    gemini.will(blocks())
    assert alice.send(conversation, "Something bad?").status_code == 200
    gemini.will(*[fails(400)] * 3)
    assert bob.send(talk, "Anybody there?").status_code >= 500
    gemini.reset()


def shown(client: Client, **query: Any) -> Page:
    response = client.get(PAGE, query)
    assert response.status_code == 200
    return Page(response)


def figures(page: Page) -> dict[str, str]:
    """Title → value of the cards."""
    cards = re.findall(r"<span>([^<]+)</span>\s*<b>([^<]+)</b>", page.html)
    return dict(cards)


def count(client: Client, address: str) -> int:
    return int(client.get(address).context["cl"].result_count)


def test_the_cards_say_what_happened(desk: Desk, superuser: User, chats: None) -> None:
    said = figures(shown(desk(superuser)))

    assert said["Messages"] == str(Message.objects.count())
    assert (said["Users"], said["Replies"], said["Failed"], said["Blocked"]) == ("2", "3", "1", "1")
    assert said["Tokens"] == f"{sum(Turn.objects.values_list('total_tokens', flat=True)):,}"
    assert said["Cost"].startswith("$0.0")
    assert said["Time to reply"].endswith(" s")


def test_every_link_leads_to_exactly_its_rows(desk: Desk, superuser: User, chats: None) -> None:
    client = desk(superuser)
    page = shown(client)
    said = figures(page)
    cards = {title: re.search(rf'href="([^"]+)">\s*<span>{title}<', page.html) for title in said}
    to = {title: match[1].replace("&amp;", "&") for title, match in cards.items() if match}

    for title in ("Messages", "Replies", "Failed", "Blocked"):
        assert count(client, to[title]) == int(said[title]), title
    lines = [(words, href) for words, href in page.links if "influencer__id__exact" in href]
    assert [words for words, _ in lines] == ["5", "3", "1", "1", "0", "0"]
    for words, href in lines:
        assert count(client, href) == int(words)
    assert page.link("Coach Asha").endswith("/change/")


def test_a_bar_leads_to_its_day(desk: Desk, superuser: User, chats: None) -> None:
    yesterday = timezone.now() - dt.timedelta(days=1)
    turn = Turn.objects.filter(state=Turn.State.DONE).first()
    assert turn
    Turn.objects.filter(pk=turn.pk).update(created_at=yesterday)
    client = desk(superuser)
    page = shown(client, days=7)

    bars = re.findall(r'<a href="([^"]+)"[^>]*><g><title>([^<]+)</title>', page.html)
    replies = [(href, said) for href, said in bars if "state__exact=done" in href][:7]

    assert [said.rpartition(" ")[2] for _, said in replies] == ["0"] * 5 + ["1", "2"]
    assert [count(client, href.replace("&amp;", "&")) for href, _ in replies] == [0] * 5 + [1, 2]
    assert f"{yesterday:%-d %B %Y}: 1" in [said for _, said in replies]


def test_an_analyst_sees_figures_and_no_way_to_the_chats(desk: Desk, analyst: User, chats: None) -> None:
    client = desk(analyst)
    page = shown(client)

    assert figures(page)["Replies"] == "3"
    assert "Coach Asha" in page.text
    assert not [href for _, href in page.links if "/conversations/" in href or "/personas/" in href]
    assert PAGE in [href for _, href in page.links], "it stands in the navigation"
    for path in ("conversations/turn/", "conversations/message/", "personas/influencer/"):
        assert client.get(f"/admin/{path}").status_code == 403


def test_nobody_s_id_or_words_are_on_it(desk: Desk, analyst: User, superuser: User, chats: None) -> None:
    for user in (analyst, superuser):
        page = shown(desk(user))
        for word in ("alice", "bob", QUESTION, REPLY, CANARY, "Anybody there"):
            assert word not in page.html


def test_it_is_for_those_who_may_see_statistics(desk: Desk, editor: User, analyst: User, db: None) -> None:
    assert desk(editor).get(PAGE).status_code == 403
    assert PAGE not in [href for _, href in Page(desk(editor).get("/admin/")).links]
    assert Client().get(PAGE)["Location"].startswith("/admin/login/")
    analyst.is_staff = False
    analyst.save()
    assert desk(analyst).get(PAGE).status_code == 302


@pytest.mark.parametrize(("days", "choice"), [("7", 7), ("30", 30), ("90", 90), ("", 30), ("8", 30), ("x" * 99, 30)])
def test_the_days_can_be_chosen(days: str, choice: int, desk: Desk, analyst: User) -> None:
    page = shown(desk(analyst), days=days)

    assert page.html.count('class="bar"') == 8 * choice
    assert f'<a href="?days={choice}" aria-current="true">' in page.html


def test_dates_can_be_chosen(desk: Desk, superuser: User, chats: None) -> None:
    with time_machine.travel(dt.datetime(2031, 5, 20, 12, tzinfo=dt.UTC), tick=False):
        Turn.objects.update(created_at=dt.datetime(2031, 3, 31, 23, 59, 59, tzinfo=dt.UTC))
        client = desk(superuser)

        march = shown(client, first="2031-03-01", last="2031-03-31")
        april = shown(client, first="2031-04-01", last="2031-04-30")

    assert (figures(march)["Replies"], figures(april)["Replies"]) == ("3", "0")
    assert 'value="2031-03-01"' in march.html
    assert "Nobody wrote anything in these days." in april.text


@pytest.mark.parametrize(
    ("first", "last"),
    [
        *(("2026-02-01", "2026-01-01"), ("2026-13-01", "2026-13-02"), ("yesterday", "today"), ("2026-01-01", "")),
        *(("0001-01-01", "0001-01-02"), ("9999-12-30", "9999-12-31"), ("2020-01-01", "2026-01-01")),
        *(("\x00", "\x00"), ("<script>", "'\"")),
    ],
)
def test_dates_that_cannot_be_get_a_sentence(first: str, last: str, desk: Desk, analyst: User) -> None:
    page = shown(desk(analyst), first=first, last=last)

    assert "These are the last 30" in page.text
    assert page.html.count('class="bar"') == 8 * 30


def test_markup_in_a_name_is_inert(desk: Desk, superuser: User, chats: None, coach: Influencer) -> None:
    coach.display_name = "\"'></title><script>x_canary()</script>"
    coach.save()

    assert "<script>x_canary" not in shown(desk(superuser)).html


def test_the_statements_do_not_grow_and_are_kept_for_a_minute(desk: Desk, analyst: User, chats: None) -> None:
    client = desk(analyst)
    with CaptureQueriesContext(connection) as first:
        shown(client)
    with CaptureQueriesContext(connection) as second:
        shown(client)

    assert len(first) - len(second) == 3
    assert len(second) <= 4, [query["sql"] for query in second]

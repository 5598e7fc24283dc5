"""Editors and publishers at once, with real threads through the admin's real pages."""

from functools import partial
from typing import Any

import pytest
from django.test import Client

from personas import versions
from personas.models import Influencer, PersonaVersion
from tests.conversations.test_races import at_once
from tests.personas.page import Page
from tests.test_admin_personas import LIST, change, page

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_connection_held")]


def test_of_two_who_publish_at_once_one_publishes(staff: list[Client], coach: Influencer) -> None:
    versions.save_draft(influencer_id=coach.pk, content={"initial_greeting": "New"})
    url = f"{LIST}{coach.pk}/publish/"
    forms = [page(client, url).form("publish_form") for client in staff]

    answers = at_once(
        *(
            partial(client.post, url, {**form, "change_note": f"Note {number}"}, follow=True)
            for number, (client, form) in enumerate(zip(staff, forms, strict=True))
        )
    )

    said = [Page(answer).text for answer in answers]
    assert sum("Version 2 is live: the next answer obeys it." in text for text in said) == 1
    assert sum("Nothing was published." in text for text in said) == len(staff) - 1
    rows = PersonaVersion.objects.filter(influencer=coach).order_by("number").values_list("number", "initial_greeting")
    assert list(rows) == [(1, "Hi, I'm your coach!"), (2, "New")]
    assert Influencer.objects.get().live_version == 2


def test_of_two_who_save_at_once_one_saves_and_the_others_see_it(staff: list[Client], coach: Influencer) -> None:
    forms = [page(client, change(coach)).form("influencer_form") for client in staff]

    answers: list[Any] = at_once(
        *(
            partial(client.post, change(coach), {**form, "initial_greeting": [f"Text {number}"]})
            for number, (client, form) in enumerate(zip(staff, forms, strict=True))
        )
    )

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 302]
    draft = PersonaVersion.objects.drafts().get()
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            assert Page(answer).form("influencer_form")["initial_greeting"] == [f"Text {number}"]
        else:
            assert draft.initial_greeting == f"Text {number}"


def test_two_who_roll_back_at_once_go_back_once(staff: list[Client], coach: Influencer) -> None:
    for greeting in ("Second", "Third"):
        versions.publish_content(influencer_id=coach.pk, content={"initial_greeting": greeting}, change_note=greeting)
    shown = page(staff[0], f"{LIST}{coach.pk}/versions/")
    revision = next(attrs["value"] for _, attrs in shown.tags if attrs.get("name") == "revision")

    at_once(*(partial(client.post, f"{LIST}{coach.pk}/roll-back/", {"revision": revision}) for client in staff))

    assert Influencer.objects.get().initial_greeting == "Second"
    assert PersonaVersion.objects.count() == 4


def test_commands_that_publish_at_once_number_their_versions_in_turn(coach: Influencer) -> None:
    at_once(
        *(
            partial(
                versions.publish_content, influencer_id=coach.pk, content={"initial_greeting": str(n)}, change_note="x"
            )
            for n in range(6)
        )
    )

    published = PersonaVersion.objects.order_by("number")
    assert [version.number for version in published] == list(range(1, 8))
    live = Influencer.objects.get()
    assert (live.version_number, live.initial_greeting) == (7, published[6].initial_greeting)

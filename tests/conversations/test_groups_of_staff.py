"""The groups that a migration makes: what each gives, and that it takes nothing from an operator."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command

BEFORE, NOW = "0006_versions_of_answers", "0007_groups_of_staff"
EDITORS = {"add_influencer", "change_influencer", "view_influencer"}
GROUPS = {
    "Content editors": EDITORS,
    "Publishers": EDITORS | {"publish_influencer"},
    "Support": {"view_conversation", "view_message", "view_turn", "view_mediaupload"},
    "Analysts": {"view_statistics"},
}
WITH_WHY = GROUPS | {"Support": GROUPS["Support"] | {"explain_message"}}  # which a later migration gives


def migrate(name: str) -> None:
    call_command("migrate", "conversations", name, verbosity=0)


def rights(group: str) -> set[str]:
    return set(Group.objects.get(name=group).permissions.values_list("codename", flat=True))


@pytest.mark.django_db
@pytest.mark.parametrize("group", WITH_WHY)
def test_a_group_gives_exactly_its_rights(group: str) -> None:
    assert rights(group) == WITH_WHY[group]


@pytest.fixture
def before() -> Iterator[None]:
    """The last migration that knows no such groups but the editors'."""
    migrate(BEFORE)
    yield
    call_command("migrate", verbosity=0)


back_and_forth = pytest.mark.django_db(transaction=True)


@back_and_forth
def test_they_are_made_before_django_has_made_the_permissions(before: None) -> None:
    Permission.objects.all().delete()
    ContentType.objects.all().delete()
    ContentType.objects.clear_cache()

    migrate(NOW)
    call_command("migrate", verbosity=0)  # now Django makes its own, and none twice

    for group, codenames in WITH_WHY.items():
        assert rights(group) == codenames
        for codename in codenames:
            assert Permission.objects.filter(codename=codename).count() == 1


@back_and_forth
def test_what_an_operator_gave_stays_there_and_back(before: None) -> None:
    group = Group.objects.create(name="Support")
    member = User.objects.create_user("helper")
    member.groups.add(group)
    group.permissions.add(Permission.objects.get(codename="view_influencer"))

    migrate(NOW)
    assert rights("Support") == GROUPS["Support"] | {"view_influencer"}

    migrate(BEFORE)
    assert rights("Support") == {"view_influencer"}
    assert list(member.groups.all()) == [group]
    assert not Group.objects.filter(name__in=["Publishers", "Analysts"]).exists()
    migrate(NOW)
    assert rights("Support") == GROUPS["Support"] | {"view_influencer"}
    assert list(member.groups.all()) == [group]

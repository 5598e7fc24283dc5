"""Who changed what of a persona, with what stood there before and after: entries of the admin's log."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.utils.text import capfirst

from personas.models import Influencer

Values = Mapping[str, tuple[Any, Any]]  # field → before, after


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Values:
    return {name: (value, after[name]) for name, value in before.items() if name in after and after[name] != value}


def label(name: str) -> str:
    field: Any = Influencer._meta.get_field(name)
    return capfirst(str(field.verbose_name))


def _plain(value: Any) -> Any:
    return f"{value:%Y-%m-%d %H:%M} UTC" if isinstance(value, dt.datetime) else value


def record(
    author: User | None,
    influencer: Influencer,
    did: str,
    values: Values,
    *,
    note: str = "",
    kind: int = CHANGE,
) -> None:
    """In the transaction of the change itself. `did` is a sentence. Commands have no author, and leave no entry."""
    if author is None:
        return
    # `fields` is what Django shows of it
    shown = {name: [_plain(value) for value in pair] for name, pair in values.items()}
    message = {"fields": [label(name) for name in values] or [did], "did": did, "values": shown, "note": note}
    LogEntry.objects.log_actions(author.pk, [influencer], kind, change_message=[{"changed": message}])

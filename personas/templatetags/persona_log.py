import json
from typing import Any

from django import template
from django.contrib.admin.models import LogEntry

from personas.differences import differences

register = template.Library()


@register.filter
def in_words(entry: LogEntry) -> dict[str, Any]:
    """What an entry of audit.record says: the sentence, the note, and what stood in each field before and after."""
    try:
        message = json.loads(entry.change_message)[0]["changed"]
        values = message["values"].items()
        before, after = ({name: pair[place] for name, pair in values} for place in (0, 1))
        return {"did": message["did"], "note": message["note"], "differences": differences(before, after)}
    except (ValueError, LookupError, TypeError, AttributeError):  # Django's own, or an older one
        return {"did": entry.get_change_message(), "note": "", "differences": []}

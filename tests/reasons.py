"""Staff say why they read, by the page that asks."""

from typing import Any

from django.test import Client

from media_uploads.models import MediaUpload
from tests.personas.page import Page

WHY = "The user asked why no answer came."


def question(row: Any) -> str:
    """Where it is asked: of a conversation, or of a user's files."""
    at = f"file/{row.pk}" if isinstance(row, MediaUpload) else getattr(row, "pk", row)
    return f"/admin/conversations/conversation/{at}/reason/"


def give_reason(client: Client, *rows: Any, reason: str = WHY, purpose: str = "asked", then: str = "") -> Any:
    for row in rows:
        response = client.get(question(row), {"next": then} if then else {})
        assert response.status_code == 200, response
        form = Page(response).form("reason_form")
        answer = client.post(question(row), {**form, "purpose": purpose, "reason": reason})
        assert answer.status_code == 302, Page(answer).text
    return answer

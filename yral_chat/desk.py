"""The frame around the admin's pages: its site, what stands in the navigation, and by which job it is found."""

import json
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.admin.sites import site
from django.core.paginator import InvalidPage
from django.http import Http404, HttpRequest, HttpResponse
from django.templatetags.static import static
from django.urls import reverse
from django.utils.html import format_html
from unfold import fields
from unfold.sites import UnfoldAdminSite


class Desk(UnfoldAdminSite):
    """Set as the admin's site in apps.py."""

    index_title = "What would you like to do?"

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """Colours come from theme.css: the theme would write them into the page, where the policy allows no styles."""
        return {**super().each_context(request), "colors": None}

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        try:
            return super().search(request, extra_context)
        except (InvalidPage, ValueError) as exc:
            raise Http404 from exc


def readable(value: Any, encoder: type[json.JSONEncoder] | None) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, cls=encoder)
    return format_html('<pre class="as-written">{}</pre>', text)


fields.prettify_json = readable  # type: ignore[assignment, attr-defined]  # the theme's colours JSON by styles, which no page may hold


@dataclass(frozen=True)
class Page:
    """One entry of the navigation: the list of a model (`app.model`), or the page that has this name in urls.py."""

    title: str
    icon: str  # a name of https://fonts.google.com/icons
    what_for: str
    model: str = ""
    name: str = ""
    permission: str = ""

    def shown_to(self, request: HttpRequest) -> bool:
        if not self.model:
            return request.user.has_perm(self.permission)
        return bool(site._registry[apps.get_model(self.model)].has_view_or_change_permission(request))

    @property
    def address(self) -> str:
        return reverse(f"admin:{self.name or self.model.lower().replace('.', '_') + '_changelist'}")


# By job. A page appears for those who may see it, and a job for those who may see one of its pages.
JOBS: dict[str, list[Page]] = {
    "Personas": [
        Page(
            "Personas",
            "theater_comedy",
            "Write who users talk with: character, greeting, picture.",
            "personas.Influencer",
        ),
    ],
    "Conversations": [
        Page("Conversations", "forum", "Find a user's chat, by the user's id.", "conversations.Conversation"),
        Page("Messages", "chat", "Read what was said, with a reason.", "conversations.Message"),
        Page("Turns", "timer", "See why an answer was late, dear or missing.", "conversations.Turn"),
    ],
    "Media": [
        Page("Uploads", "perm_media", "Pictures and voice notes that users sent.", "media_uploads.MediaUpload"),
    ],
    "Insights": [
        Page(
            "Statistics",
            "monitoring",
            "How much is said, how well it is answered, and what it costs.",
            name="statistics",
            permission="conversations.view_statistics",
        ),
    ],
    "System": [
        Page("Staff", "badge", "Who may come here, and what they may do.", "auth.User"),
        Page("Groups", "groups", "Rights that several people share.", "auth.Group"),
        Page("Changes", "edit_note", "Who changed what, and what stood there before.", "admin.LogEntry"),
        Page("Failed logins", "lock", "Unlock a colleague whose password was wrong too often.", "axes.AccessAttempt"),
        Page("Readings", "visibility", "Who read whose conversation, when and why.", "conversations.Reading"),
        Page("Logins", "history", "Who logged in, when and from where.", "axes.AccessLog"),
    ],
}


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """As the theme wants it. Set in UNFOLD."""
    return [{"title": job, "items": [entry(page) for page in pages]} for job, pages in jobs_of(request).items()]


def jobs_of(request: HttpRequest) -> dict[str, list[Page]]:
    """Those of this person."""
    found = {job: [page for page in pages if page.shown_to(request)] for job, pages in JOBS.items()}
    return {job: pages for job, pages in found.items() if pages}


def entry(page: Page) -> dict[str, Any]:
    return {"title": page.title, "icon": page.icon, "link": page.address}


def home(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the first page needs. Set in UNFOLD."""
    return {**context, "jobs": jobs_of(request)}


def environment(request: HttpRequest) -> list[str] | None:
    """So that nobody takes staging for production. Set in UNFOLD."""
    colours = {"development": "info", "staging": "warning"}
    return None if settings.PRODUCTION else [settings.ENVIRONMENT.capitalize(), colours[settings.ENVIRONMENT]]


def icon(request: HttpRequest) -> str:
    return static("yral_chat/icon.svg")


def style(request: HttpRequest) -> str:
    return static("yral_chat/theme.css")


def script(request: HttpRequest) -> str:
    return static("yral_chat/theme.js")

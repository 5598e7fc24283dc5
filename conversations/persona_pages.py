"""What the desk's pages of this app about one persona share: whose page it is, who may come, and its frame."""

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.views.generic import View

from personas import versions
from personas.desk import State, may
from personas.models import Influencer

DRAFT, LIVE = "draft", "live"


class PersonaPage(View):
    """At personas/influencer/<id>/…; listed in UNFOLD's SITE_VIEWS, so that personas can link to it by its name."""

    admin_site: Any = None
    for_those_who_may: tuple[str, ...] = ("change", "publish")

    state: State

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not may(request, *self.for_those_who_may):
            raise PermissionDenied
        key = unquote(kwargs.pop("influencer_id"))
        persona = None if "\x00" in key else Influencer.objects.filter(pk=key).first()
        if persona is None:
            raise Http404
        self.state = State(request, persona, versions.draft_of(persona))
        return super().dispatch(request, *args, **kwargs)

    def persona_as(self, which: str) -> Influencer:
        """As its draft has it, or as it is live. Where there is no draft both are the same."""
        persona, draft = self.state.persona, self.state.draft
        return versions.as_drafted(persona, draft) if which == DRAFT and draft else persona

    @property
    def sides(self) -> list[tuple[str, str]]:
        """What can be tried and looked at, and its title. Of a persona that was never published nothing is live."""
        number = self.state.persona.version_number
        live = (LIVE, f"Live: version {number}" if number else "Live")
        if self.state.is_new:
            return [(DRAFT, "Draft")]
        return [(DRAFT, "Draft"), live] if self.state.draft else [live]

    def page(self, template: str, heading: str, **context: Any) -> HttpResponse:
        shared = {
            **self.admin_site.each_context(self.request),
            "opts": Influencer._meta,
            "original": self.state.persona,
            "title": f"{heading}: {self.state.persona}",
            "heading": heading,
            "media": self.admin_site._registry[Influencer].media,
            "state": self.state,
        }
        return TemplateResponse(self.request, template, {**shared, **context})

"""The admin's pages about a persona's versions: publish, history, one version beside another, and back."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import site
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.views.decorators.http import require_POST
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from personas import lint, operating, versions
from personas.differences import Difference, as_text, differences
from personas.models import VERSIONED, Influencer, PersonaVersion
from yral_chat.errors import Conflict

NAME = "personas_influencer"
MOST_ON_A_PAGE = 50
NAMES = ("export", "change", "publish", "operate", "roll_back", "set_aside", "versions")
OTHER_PAGES = ("preview", "playground", "tests")


def urls() -> list[URLPattern]:
    def page(route: str, view: Any, name: str) -> Any:
        return path(f"<path:influencer_id>/{route}", site.admin_view(view), name=f"{NAME}_{name}")

    return [
        page("publish/", publish_page, "publish"),
        page("operate/", operate_page, "operate"),
        page("roll-back/", roll_back, "roll_back"),
        page("draft/set-aside/", set_aside, "set_aside"),
        page("versions/", versions_page, "versions"),
        page("versions/<int:version_id>/", version_page, "version"),
        page("versions/<int:version_id>/restore/", restore, "restore"),
    ]


def may(request: HttpRequest, *actions: str) -> bool:
    """One of them is enough."""
    user = request.user
    return isinstance(user, User) and any(user.has_perm(f"personas.{action}_influencer") for action in actions)


def _help(name: str) -> str:
    field: Any = Influencer._meta.get_field(name)
    return str(field.help_text)


@dataclass(frozen=True)
class State:
    """Where a persona stands, for the head of its pages."""

    request: HttpRequest
    persona: Influencer  # as stored
    draft: PersonaVersion | None

    @property
    def findings(self) -> list[lint.Finding]:
        return lint.findings(versions.as_drafted(self.persona, self.draft) if self.draft else self.persona)

    @property
    def is_new(self) -> bool:
        return self.persona.is_active == Influencer.Status.DRAFT

    @property
    def revision(self) -> str:
        return versions.revision_of(self.persona, self.draft)

    @property
    def earlier(self) -> PersonaVersion | None:
        return versions.version_before(self.persona)

    @property
    def is_behind(self) -> bool:
        """What was published since the draft was begun would be undone by it."""
        return self.draft is not None and self.draft.based_on != self.persona.live_version

    @cached_property
    def spent_today(self) -> int:
        return operating.spent_today(self.persona)

    @property
    def has_spent_its_day(self) -> bool:
        return self.persona.daily_token_cap is not None and self.spent_today >= self.persona.daily_token_cap

    @property
    def objections(self) -> list[versions.Objection]:
        return versions.objections_to(self.draft) if self.draft else []

    @property
    def may_publish(self) -> bool:
        return may(self.request, "publish")

    @property
    def may_change(self) -> bool:
        return may(self.request, "change")

    def address(self, name: str) -> str:
        return reverse(f"admin:{NAME}_{name}", args=[quote(self.persona.pk)])

    @property
    def addresses(self) -> dict[str, str]:
        """The pages of other apps are known by their names alone."""
        own = {name: self.address(name) for name in NAMES}
        key = quote(self.persona.pk)
        return own | {name: reverse(f"admin:persona_{name}", args=[key]) for name in OTHER_PAGES}


class PublishForm(forms.Form):
    revision = forms.CharField(widget=forms.HiddenInput)
    change_note = forms.CharField(
        label="What changed, and why",
        max_length=2000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="A sentence for your colleagues; it stands in the list of versions.",
        error_messages={"required": "Say in a sentence what changed."},
    )
    despite = forms.CharField(
        label="Why you publish it all the same",
        required=False,
        max_length=1000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="It stands below your note in the list of versions.",
    )


def publish_page(request: HttpRequest, influencer_id: str) -> HttpResponse:
    """The draft beside what is live, and the button."""
    state = _state(request, influencer_id, "publish")
    if request.method == "POST" and (published := _published(request, state)):
        return published
    state = _state(request, influencer_id, "publish")
    if state.draft is None:
        messages.info(request, "There is no draft to publish.")
        return HttpResponseRedirect(state.address("change"))
    form = PublishForm(request.POST or None, initial={"revision": state.revision})
    against = state.objections
    if not any(one.needs_reason for one in against):
        del form.fields["despite"]
    elif form.is_bound and form.is_valid() and not form.cleaned_data["despite"]:
        form.add_error("despite", "Say why you publish it all the same.")
    if form.is_bound:  # it comes again, with what is to be seen now
        form.data = {**form.data.dict(), "revision": state.revision}  # type: ignore[attr-defined]
    changed = differences({} if state.is_new else state.persona.content, state.draft.content)
    return _page(request, "personas/publish.html", "Publish", state, form=form, differences=changed, objections=against)


def _published(request: HttpRequest, state: State) -> HttpResponse | None:
    form = PublishForm(request.POST)
    if not form.is_valid():
        return None
    sent = form.cleaned_data
    try:
        version = versions.publish(
            influencer_id=state.persona.pk,
            change_note=sent["change_note"],
            author=_author(request),
            revision=sent["revision"],
            despite=sent["despite"],
        )
    except ValidationError:  # no reason was given: the form that comes again says so
        return None
    except Conflict as exc:
        messages.error(request, f"Nothing was published. {exc}")
        return None
    messages.success(request, f"Version {version.number} is live: the next answer obeys it.")
    return HttpResponseRedirect(state.address("change"))


class OperateForm(forms.Form):
    revision = forms.CharField(widget=forms.HiddenInput)
    paused = forms.BooleanField(
        label="Pause the persona",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="It answers every message with its away message until you end the pause.",
    )
    away_message = forms.CharField(
        label="Away message",
        required=False,
        max_length=1000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text=f"{_help('away_message')} That is: “{operating.AWAY}”",
    )
    goes_live_at = forms.DateTimeField(
        label="Goes live at (UTC)",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local"}),
        help_text=f"{_help('goes_live_at')} A persona that is active now becomes coming soon again by it.",
    )
    daily_token_cap = forms.IntegerField(
        label="Tokens a day",
        required=False,
        min_value=1,
        max_value=2**53,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text=_help("daily_token_cap"),
    )

    def values(self, persona: Influencer) -> dict[str, Any]:
        sent = {name: self.cleaned_data[name] for name in ("away_message", "goes_live_at", "daily_token_cap")}
        sent["away_message"] = sent["away_message"].replace("\r\n", "\n")
        since = (persona.paused_at or timezone.now()) if self.cleaned_data["paused"] else None
        return {**sent, "paused_at": since}


def operate_page(request: HttpRequest, influencer_id: str) -> HttpResponse:
    """Pause, time to go live, and tokens a day, with what is spent."""
    state = _state(request, influencer_id, "publish")
    form = OperateForm(request.POST or None, initial=_operated(state.persona))
    if form.is_bound and form.is_valid() and _operates(request, state, form):
        return HttpResponseRedirect(state.address("operate"))
    return _page(request, "personas/operate.html", "Operate", state, form=form)


def _operated(persona: Influencer) -> dict[str, Any]:
    return {
        "revision": operating.revision_of(persona),
        "paused": persona.paused_at is not None,
        "away_message": persona.away_message,
        "goes_live_at": persona.goes_live_at and f"{persona.goes_live_at:%Y-%m-%dT%H:%M:%S}",
        "daily_token_cap": persona.daily_token_cap,
    }


def _operates(request: HttpRequest, state: State, form: OperateForm) -> bool:
    try:
        operating.operate(
            influencer_id=state.persona.pk,
            values=form.values(state.persona),
            author=_author(request),
            revision=form.cleaned_data["revision"],
        )
    except Conflict as exc:
        messages.error(request, f"Nothing was changed. {exc} Your values are all here: look at them, then save again.")
        now = operating.revision_of(_state(request, quote(state.persona.pk), "publish").persona)
        form.data = {**form.data.dict(), "revision": now}  # type: ignore[attr-defined]
    except ValidationError as exc:
        form.add_error(None, exc)
    else:
        messages.success(request, "Saved: the next answer obeys it.")
        return True
    return False


def versions_page(request: HttpRequest, influencer_id: str) -> HttpResponse:
    state = _state(request, influencer_id, "view", "change", "publish")
    rows = PersonaVersion.objects.filter(influencer=state.persona.pk).defer(*VERSIONED)
    rows = rows.select_related("author", "published_by").newest_first()
    listed = Paginator(rows, MOST_ON_A_PAGE).get_page(request.GET.get("page"))
    return _page(request, "personas/versions.html", "Versions", state, listed=listed)


def version_page(request: HttpRequest, influencer_id: str, version_id: int) -> HttpResponse:
    """One version beside another: the one asked for, or the one before it."""
    state = _state(request, influencer_id, "view", "change", "publish")
    version = _version(state, version_id)
    others = PersonaVersion.objects.filter(influencer=state.persona.pk).exclude(pk=version.pk).newest_first()
    asked = request.GET.get("against", "")
    against = _version(state, int(asked)) if asked.isdecimal() and len(asked) < 19 else _before(version, others)
    return _page(
        request,
        "personas/version.html",
        versions.name_of(version).capitalize(),
        state,
        version=version,
        against=against,
        others=others.defer(*VERSIONED),
        differences=differences(against.content, version.content) if against else [],
        content=_written_out(version),
    )


def _before(version: PersonaVersion, others: Any) -> PersonaVersion | None:
    published: PersonaVersion | None = others.published().filter(number__lt=version.number or 2**31 - 1).first()
    return published


def _written_out(version: PersonaVersion) -> list[Difference]:
    """All that it says, in the shape of a difference from nothing."""
    return [
        one for one in differences(dict.fromkeys(VERSIONED), version.content) if as_text(version.content[one.field])
    ]


@require_POST
def restore(request: HttpRequest, influencer_id: str, version_id: int) -> HttpResponse:
    state = _state(request, influencer_id, "change")
    version = _version(state, version_id)
    done = f"The draft is what {versions.name_of(version)} was. Users see it when it's published."
    return _do(request, state, versions.restore, done, version=version)


@require_POST
def set_aside(request: HttpRequest, influencer_id: str) -> HttpResponse:
    state = _state(request, influencer_id, "change")
    done = "The draft is set aside. It can be restored from the list of versions."
    return _do(request, state, versions.set_draft_aside, done, influencer_id=state.persona.pk)


@require_POST
def roll_back(request: HttpRequest, influencer_id: str) -> HttpResponse:
    state = _state(request, influencer_id, "publish")
    done = "The earlier version is live again: the next answer obeys it. The draft is as it was."
    return _do(request, state, versions.roll_back, done, influencer_id=state.persona.pk)


def _do(request: HttpRequest, state: State, service: Any, done: str, **arguments: Any) -> HttpResponse:
    """As long as the persona is as the page with the button showed it."""
    try:
        service(author=_author(request), revision=request.POST.get("revision", ""), **arguments)
    except Conflict as exc:
        messages.error(request, f"Nothing was done. {exc}")
    else:
        messages.success(request, done)
    return HttpResponseRedirect(state.address("change"))


def _state(request: HttpRequest, influencer_id: str, *actions: str) -> State:
    if not may(request, *actions):
        raise PermissionDenied
    key = unquote(influencer_id)
    persona = None if "\x00" in key else Influencer.objects.filter(pk=key).first()
    if persona is None:
        raise Http404
    return State(request, persona, versions.draft_of(persona))


def _version(state: State, version_id: int) -> PersonaVersion:
    rows = PersonaVersion.objects.filter(influencer=state.persona.pk).select_related("author", "published_by")
    found = rows.filter(pk=version_id).first() if version_id < 2**63 else None
    if found is None:
        raise Http404
    return found


def _author(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


def _page(request: HttpRequest, template: str, title: str, state: State, **context: Any) -> HttpResponse:
    admin = site._registry[Influencer]
    shared = {
        **site.each_context(request),
        "opts": Influencer._meta,
        "original": state.persona,
        "title": f"{title}: {state.persona}",
        "heading": title,
        "media": admin.media,
        "state": state,
    }
    return TemplateResponse(request, template, {**shared, **context})

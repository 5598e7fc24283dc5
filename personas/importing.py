"""Personas out of the admin and into it, as JSON: a file, where each of its personas goes, and what would change."""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
from django import forms
from django.contrib import messages
from django.contrib.admin import site
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.datastructures import MultiValueDict
from django.utils.text import slugify
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from personas import exchange
from personas.models import Influencer
from yral_chat.database import write_transaction
from yral_chat.errors import Conflict

NAME = "personas_influencer"
NEW = "new"


def urls() -> list[URLPattern]:
    return [
        path("import/", site.admin_view(import_page), name=f"{NAME}_import"),
        path("<path:influencer_id>/export/", site.admin_view(export), name=f"{NAME}_export"),
    ]


def may_import(request: HttpRequest) -> bool:
    return _may(request, "add") or _may(request, "change")


def _may(request: HttpRequest, action: str) -> bool:
    return isinstance(request.user, User) and request.user.has_perm(f"personas.{action}_influencer")


# Out


def export(request: HttpRequest, influencer_id: str) -> HttpResponse:
    """What is live, or with ?draft the draft."""
    if not any(_may(request, action) for action in ("view", "change")):
        raise PermissionDenied
    key = unquote(influencer_id)
    found = None if "\x00" in key else Influencer.objects.filter(pk=key).first()
    if found is None:
        raise Http404
    return download([found], drafted="draft" in request.GET)


def download(influencers: list[Influencer], *, drafted: bool = False) -> HttpResponse:
    name = slugify(influencers[0].name) if len(influencers) == 1 else "personas"
    response = HttpResponse(exchange.exported(influencers, drafted=drafted), content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="{name or "persona"}.json"'
    return response


# In


class FileForm(forms.Form):
    file = forms.FileField(
        label="JSON file",
        widget=UnfoldAdminFileFieldWidget(attrs={"accept": ".json,application/json"}),
        help_text="An export of personas, or a Character Card (V2 or V3).",
        error_messages={"required": "Choose a file.", "empty": "The file is empty."},
    )

    def clean_file(self) -> bytes:
        sent = self.cleaned_data["file"]
        if sent.size > exchange.MOST_BYTES:
            raise forms.ValidationError("The file is larger than 900 kB.")
        return bytes(sent.read())


class WhereForm(forms.Form):
    """Where one persona of the file goes. Nothing is chosen beforehand."""

    into = forms.ChoiceField(label="Where to", required=False, widget=UnfoldAdminSelectWidget)
    name = forms.CharField(
        label="Short name", required=False, max_length=100, widget=UnfoldAdminTextInputWidget,
        help_text="Of a new persona.",
    )  # fmt: skip

    def __init__(self, *args: Any, targets: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["into"].choices = targets  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Row:
    arrival: exchange.Arrival
    form: WhereForm
    plan: exchange.Plan | None  # none: it stays outside


def import_page(request: HttpRequest) -> HttpResponse:
    """First the file, then where each persona goes and what that would change, then the taking, if all is as shown."""
    if not may_import(request):
        raise PermissionDenied
    carried = request.POST.get("carried", "").encode()
    form = FileForm(request.POST or None, request.FILES or None) if not carried else FileForm()
    if request.method != "POST" or (not carried and not form.is_valid()):
        return _page(request, form=form)
    data = carried or form.cleaned_data["file"]
    try:
        arrivals = exchange.read(data)
    except exchange.NotImportable as exc:
        refused = FileForm({}, MultiValueDict())
        refused.errors["file"] = refused.error_class([str(exc)])
        return _page(request, form=refused)
    rows = _rows(request, arrivals, bound=bool(carried))
    if "take" in request.POST and (taken := _taken(request, rows)):
        return taken
    compact = orjson.dumps(orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))).decode()
    return _page(request, rows=rows, carried=compact, seen=_digest(rows), ready=_ready(rows))


def _rows(request: HttpRequest, arrivals: list[exchange.Arrival], *, bound: bool) -> list[Row]:
    targets = _targets(request)
    rows = []
    for number, arrival in enumerate(arrivals):
        given, start = (request.POST if bound else None), {"name": arrival.details["name"]}
        form = WhereForm(given, prefix=str(number), initial=start, targets=targets)
        chosen = form.cleaned_data["into"] if form.is_valid() else ""
        rows.append(Row(arrival, form, _plan(arrival, chosen, form) if chosen else None))
    return rows


def _plan(arrival: exchange.Arrival, chosen: str, form: WhereForm) -> exchange.Plan:
    into = None if chosen == NEW else Influencer.objects.get(pk=chosen.removeprefix("into "))
    return exchange.plan(arrival, into, form.cleaned_data["name"])


def _targets(request: HttpRequest) -> list[tuple[str, str]]:
    targets = [("", "Nowhere: leave it out")]
    if _may(request, "add"):
        targets.append((NEW, "A new persona"))
    if _may(request, "change"):
        known = Influencer.objects.values_list("pk", "display_name", "name")
        targets += [(f"into {pk}", f"The draft of {shown} ({name})") for pk, shown, name in known]
    return targets


def _ready(rows: list[Row]) -> bool:
    plans = [row.plan for row in rows if row.plan]
    return bool(plans) and all(not one.faults and one.differences for one in plans) and _no_target_twice(plans)


def _no_target_twice(plans: list[exchange.Plan]) -> bool:
    targets = [one.into.pk if one.into else f"new {one.name}" for one in plans]
    return len(targets) == len(set(targets))


def _digest(rows: list[Row]) -> str:
    """Of what was shown: where to, and what stood there."""
    plans = [row.plan for row in rows]
    where = [[one.into and one.into.pk, one.name, one.revision] if one else None for one in plans]
    return hashlib.sha256(orjson.dumps([where, [row.arrival.content for row in rows]])).hexdigest()


def _taken(request: HttpRequest, rows: list[Row]) -> HttpResponse | None:
    if not _ready(rows):
        messages.error(request, "Nothing was imported. Look at what is said below.")
        return None
    if request.POST.get("seen") != _digest(rows):
        messages.error(request, "Nothing was imported yet: look at what would change first.")
        return None
    try:
        made = _take_all(request, [row.plan for row in rows if row.plan])
    except (Conflict, ValidationError) as exc:
        said = " ".join(exc.messages) if isinstance(exc, ValidationError) else str(exc)
        messages.error(request, f"Nothing was imported. {said}")
        return None
    messages.success(request, f"In the draft: {', '.join(map(str, made))}. Users see it when it's published.")
    one = reverse(f"admin:{NAME}_change", args=[quote(made[0].pk)])
    return HttpResponseRedirect(one if len(made) == 1 else reverse(f"admin:{NAME}_changelist"))


@write_transaction()
def _take_all(request: HttpRequest, plans: list[exchange.Plan]) -> list[Influencer]:
    assert isinstance(request.user, User)
    return [exchange.take(one, author=request.user) for one in plans]


def _page(request: HttpRequest, **context: Any) -> HttpResponse:
    shared = {
        **site.each_context(request),
        "opts": Influencer._meta,
        "title": "Import personas",
        "heading": "Import personas",
        "media": site._registry[Influencer].media,
    }
    return TemplateResponse(request, "personas/import.html", {**shared, **context})

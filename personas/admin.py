import copy
import json
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import orjson
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.models import DELETION
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminTextareaWidget

from personas import audit, desk, importing
from personas.differences import Difference, differences
from personas.fields import LinesField, StrictDecoder, TraitsField
from personas.models import VERSIONED, Influencer, InfluencerQuerySet, PersonaVersion
from personas.serializers import SHOWN_STATUSES, absolute
from personas.services import set_status
from personas.versions import create_persona, draft_of, revision_of, save_details, save_draft
from yral_chat.staff import DeskAdmin

MEANWHILE = (
    "Somebody changed this persona while you were writing. Your text is all here: "
    "look at what differs, then save again."
)


class Text(UnfoldAdminTextareaWidget):
    """Browsers send line breaks as CR LF; the model and the apps get LF."""

    def value_from_datadict(self, *args: Any) -> Any:
        value = super().value_from_datadict(*args)
        return value.replace("\r\n", "\n") if value else value


class InfluencerForm(forms.ModelForm):
    """Shows the draft, or what is live if there is none. `revision` and `base` are what it showed: who finds something
    else when it comes back is told, and loses nothing."""

    revision = forms.CharField(required=False, widget=forms.HiddenInput)
    base = forms.CharField(required=False, widget=forms.HiddenInput, strip=False)

    class Meta:
        model = Influencer
        fields = "__all__"  # noqa: DJ007  the admin's fieldsets choose
        widgets = {
            "system_instructions": Text(attrs={"class": "instructions", "rows": 28, "spellcheck": "true"}),
            "language_note": Text(attrs={"rows": 2, "cols": 80}),
            "initial_greeting": Text(attrs={"rows": 3, "cols": 80}),
            "description": Text(attrs={"rows": 2, "cols": 80}),
            "deflection": Text(attrs={"rows": 2, "cols": 80}),
            "suggested_messages": Text(attrs={"rows": 5, "cols": 80}),
            "personality_traits": Text(attrs={"rows": 5, "cols": 80}),
            "metadata": Text(attrs={"rows": 2, "cols": 80}),
        }
        field_classes: ClassVar[Any] = {"suggested_messages": LinesField, "personality_traits": TraitsField}
        help_texts: ClassVar[Any] = {
            "suggested_messages": "First messages that a user can tap, one to a line.",
            "personality_traits": "One to a line, each a name and what it is like, as in “tone: warm”.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        instance = kwargs.get("instance")
        self.stored: Influencer | None = None if instance is None or instance._state.adding else copy.copy(instance)
        self.draft = draft_of(self.stored) if self.stored else None
        self.conflict: Conflicting | None = None
        if self.stored:
            drafted = self.draft.content if self.draft else {}
            opened = {"revision": revision_of(self.stored, self.draft), "base": json.dumps(self._now())}
            kwargs["initial"] = {**drafted, **opened, **(kwargs.get("initial") or {})}
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if isinstance(field, forms.JSONField):
                field.decoder = StrictDecoder
        if "is_active" in self.fields:
            self.fields["is_active"].choices = SHOWN_STATUSES  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """A JSON field that was emptied is an empty list or object."""
        cleaned = super().clean() or self.cleaned_data
        for name, empty in (("suggested_messages", []), ("personality_traits", {}), ("metadata", {})):
            if name in cleaned and cleaned[name] is None:
                cleaned[name] = empty
        if self.stored and cleaned.get("revision") != revision_of(self.stored, self.draft):
            self._bring_together(cleaned, told=not self.errors)
            raise forms.ValidationError(MEANWHILE)
        return cleaned

    def _now(self) -> dict[str, Any]:
        """What is stored, as the form would show it."""
        assert self.stored is not None
        content = (self.draft or self.stored).content
        return {name: getattr(self.stored, name) for name in (*Influencer.DETAILS, "is_active")} | content

    def _bring_together(self, mine: dict[str, Any], *, told: bool) -> None:
        """The form comes again with the other's text where only they wrote, and one's own everywhere else. A
        value that doesn't hold can't be compared: then nobody counts as `told`, and all comes once more."""
        base, theirs, taken = _base(mine.get("base", "")), self._now(), []
        for name in set(theirs) & set(mine) & set(self.fields):
            if name in base and mine[name] == base[name] != theirs[name]:
                taken.append(name)
        shown = {name: self.fields[name].prepare_value(theirs[name]) for name in taken}
        if told:
            shown |= {"revision": revision_of(self.stored, self.draft), "base": json.dumps(theirs)}  # type: ignore[arg-type]
        sent = self.data.copy()  # type: ignore[attr-defined]
        for name, value in shown.items():
            sent[self.add_prefix(name)] = "" if value is None else value
        self.data = sent
        both = [
            name for name in theirs if name in mine and name not in taken and theirs[name] != base.get(name, object())
        ]
        self.conflict = Conflicting(
            who=str((self.draft and self.draft.author) or "Somebody"),
            taken=[audit.label(name) for name in theirs if name in taken],
            differences=differences({name: theirs[name] for name in both}, {name: mine[name] for name in both}),
        )


@dataclass(frozen=True)
class Conflicting:
    who: str
    taken: list[str]  # what only the other one wrote
    differences: list[Difference]  # from their text to one's own


def _base(sent: str) -> dict[str, Any]:
    try:
        base = orjson.loads(sent)
    except orjson.JSONDecodeError:
        return {}
    return base if isinstance(base, dict) else {}


class StatusFilter(admin.SimpleListFilter):
    """By what users see."""

    title, parameter_name = "status", "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(Influencer.Status.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(status=self.value()) if self.value() else queryset


@admin.register(Influencer)
class InfluencerAdmin(DeskAdmin):
    form = InfluencerForm
    list_display = ("display_name", "portrait", "category", "shown_status", "version", "updated_at")
    list_filter = (StatusFilter, "category")
    list_select_related = False
    search_fields = ("display_name", "name", "description", "category")
    readonly_fields = ("id", "portrait", "created_at", "updated_at")
    actions = ("activate", "retire", "export")
    list_before_template: Any = "personas/list.html"
    object_history_template: ClassVar[Any] = "personas/log.html"
    change_form_outer_before_template: Any = "personas/state.html"
    change_form_before_template: Any = "personas/conflict.html"
    fieldsets = (
        ("What the model reads", {"fields": ("system_instructions", "language_note", "personality_traits")}),
        ("What users read", {"fields": ("initial_greeting", "suggested_messages", "deflection")}),
        ("Model", {"fields": ("model", "temperature", "max_output_tokens")}),
        (
            "In the list of personas",
            {
                "fields": ("display_name", "is_active", "name", "category", "description", "avatar_url", "portrait"),
                "description": "These have no versions and no draft: once the persona is published, a change is in all "
                "apps at once, and on record. It's for those who may publish.",
            },
        ),
        ("Record", {"classes": ("collapse",), "fields": ("id", "created_at", "updated_at", "metadata")}),
    )

    class Media:
        js = ("personas/instructions.js",)
        css = {"all": ("personas/instructions.css", "personas/desk.css")}

    def get_urls(self) -> list[URLPattern]:
        return [*importing.urls(), *desk.urls(), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> Any:
        return cast(InfluencerQuerySet, super().get_queryset(request)).with_draft_state().with_status()

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Influencer | None:
        """Locked when it is about to be changed, so that two who save at once come one after the other."""
        if "\x00" in object_id:
            return None
        if request.method == "POST" and connection.in_atomic_block:
            Influencer.objects.select_for_update(no_key=True).filter(pk=object_id).first()
        return super().get_object(request, object_id, from_field)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        return super().history_view(request, object_id, {**(extra_context or {}), "media": self.media})

    def has_publish_permission(self, request: HttpRequest) -> bool:
        return desk.may(request, "publish")

    def get_readonly_fields(self, request: HttpRequest, obj: Influencer | None = None) -> Any:
        """What users see at once is for those who publish; the first status is made by publishing itself."""
        if obj is None or obj.is_active == Influencer.Status.DRAFT:
            return (*self.readonly_fields, "is_active")
        fixed = () if self.has_publish_permission(request) else (*Influencer.DETAILS, "is_active")
        return (*self.readonly_fields, *fixed)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Of a new persona there is neither status nor record."""
        if obj is not None:
            return self.fieldsets
        absent = ("is_active", "portrait", "id", "created_at", "updated_at")
        return [
            (title, {**options, "fields": [name for name in cast(Any, options)["fields"] if name not in absent]})
            for title, options in self.fieldsets
        ]

    def render_change_form(
        self,
        request: HttpRequest,
        context: Any,
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        form = context["adminform"].form
        context |= {"show_save_and_continue": False, "show_save_and_add_another": False}
        if form.stored:
            context["state"] = desk.State(request, form.stored, form.draft)
        return super().render_change_form(request, context, add, change, form_url, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        author, typed = cast(User, request.user), form.cleaned_data
        details = {name: typed[name] for name in Influencer.DETAILS if name in typed}
        content = {name: typed[name] for name in VERSIONED if name in typed}
        if not change:
            obj.pk = create_persona(details=details, content=content, author=author).pk
            return
        save_details(influencer_id=obj.pk, details=details, author=author)
        save_draft(influencer_id=obj.pk, content=content, author=author)
        if "is_active" in form.changed_data:
            set_status(influencers=Influencer.objects.filter(pk=obj.pk), status=typed["is_active"], author=author)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """The services keep the log."""

    log_change = log_addition

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """With all that it said; its versions go with it."""
        for one in queryset:
            said = {name: getattr(one, name) for name in Influencer.DETAILS} | (draft_of(one) or one).content
            values = audit.changes(said, dict.fromkeys(said))
            audit.record(cast(User, request.user), one, "Deleted the persona.", values, kind=DELETION)

    def response_add(self, request: HttpRequest, obj: Influencer, post_url_continue: str | None = None) -> HttpResponse:
        self.message_user(request, f"{obj} is saved. Users see it when it's published.", messages.SUCCESS)
        return self._to_the_page_of(obj)

    def response_change(self, request: HttpRequest, obj: Influencer) -> HttpResponse:
        drafted = PersonaVersion.objects.drafts().filter(influencer=obj.pk).exists()
        then = "Users see the draft when it's published." if drafted else "There is no draft: all of it is live."
        self.message_user(request, f"{obj} is saved. {then}", messages.SUCCESS)
        return self._to_the_page_of(obj)

    def _to_the_page_of(self, obj: Influencer) -> HttpResponse:
        return HttpResponseRedirect(reverse("admin:personas_influencer_change", args=[quote(obj.pk)]))

    @admin.display(description="picture")
    def portrait(self, influencer: Influencer) -> str:
        if not influencer.avatar_url:
            return "–"
        return format_html(
            '<img src="{}" alt="" width="48" height="48" class="portrait" loading="lazy">',
            absolute(influencer.avatar_url, settings.SCRIPT_NAME),
        )

    @admin.display(description="status", ordering="status")
    def shown_status(self, influencer: Influencer) -> str:
        """As users see it."""
        if influencer.waits_to_go_live:
            return f"Coming soon, live on {influencer.goes_live_at:%-d %b, %H:%M} UTC"
        paused = ", paused" if influencer.paused_at else ""
        return f"{influencer.get_is_active_display()}{paused}"

    @admin.display(description="version", ordering="live_version")
    def version(self, influencer: Any) -> str:
        """What was published last, and whether somebody works on the next one."""
        live = f"version {influencer.live_version}" if influencer.live_version else ""
        return ", ".join(part for part in (live, "draft" if influencer.has_draft else "") if part) or "–"

    @admin.action(description="Activate the selected personas", permissions=["publish"])
    def activate(self, request: HttpRequest, queryset: InfluencerQuerySet) -> None:
        self._set_status(request, queryset, Influencer.Status.ACTIVE, "activated")

    @admin.action(description="Retire the selected personas", permissions=["publish"])
    def retire(self, request: HttpRequest, queryset: InfluencerQuerySet) -> None:
        self._set_status(request, queryset, Influencer.Status.DISCONTINUED, "retired")

    @admin.action(description="Export the selected personas", permissions=["view"])
    def export(self, request: HttpRequest, queryset: InfluencerQuerySet) -> HttpResponse:
        return importing.download(list(Influencer.objects.filter(pk__in=[one.pk for one in queryset]).order_by("name")))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        may = {"may_import": importing.may_import(request)}
        return super().changelist_view(request, {**may, **(extra_context or {})})

    def _set_status(
        self, request: HttpRequest, influencers: InfluencerQuerySet, status: Influencer.Status, done: str
    ) -> None:
        chosen = Influencer.objects.filter(pk__in=[influencer.pk for influencer in influencers])
        changed = set_status(influencers=chosen, status=status, author=cast(User, request.user))
        self.message_user(request, f"{changed} persona{'' if changed == 1 else 's'} {done}.", messages.SUCCESS)

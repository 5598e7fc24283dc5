import json
from typing import Any

import orjson
from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.html import format_html

from personas.models import Influencer, InfluencerQuerySet
from personas.services import set_status


class StrictDecoder(json.JSONDecoder):
    """Python's own takes NaN and halves of characters, and the page that says so can't be sent."""

    def decode(self, s: str, *args: Any) -> Any:
        return orjson.loads(s)


class Text(forms.Textarea):
    """Browsers send line breaks as CR LF; the model and the apps get LF."""

    def value_from_datadict(self, *args: Any) -> Any:
        value = super().value_from_datadict(*args)
        return value.replace("\r\n", "\n") if value else value


class InfluencerForm(forms.ModelForm):
    class Meta:
        model = Influencer
        fields = "__all__"  # noqa: DJ007  the admin's fieldsets choose
        widgets = {
            "system_instructions": Text(attrs={"class": "instructions", "rows": 28, "spellcheck": "true"}),
            "initial_greeting": Text(attrs={"rows": 3, "cols": 80}),
            "description": Text(attrs={"rows": 2, "cols": 80}),
            "deflection": Text(attrs={"rows": 2, "cols": 80}),
            "suggested_messages": Text(attrs={"rows": 3, "cols": 80}),
            "personality_traits": Text(attrs={"rows": 3, "cols": 80}),
            "metadata": Text(attrs={"rows": 2, "cols": 80}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if isinstance(field, forms.JSONField):
                field.decoder = StrictDecoder

    def clean(self) -> dict[str, Any]:
        """A JSON field that was emptied is an empty list or object."""
        cleaned = super().clean() or self.cleaned_data
        for name, empty in (("suggested_messages", []), ("personality_traits", {}), ("metadata", {})):
            if name in cleaned and cleaned[name] is None:
                cleaned[name] = empty
        return cleaned


@admin.register(Influencer)
class InfluencerAdmin(admin.ModelAdmin):
    form = InfluencerForm
    list_display = ("display_name", "portrait", "category", "is_active", "updated_at")
    list_filter = ("is_active", "category")
    list_select_related = False
    search_fields = ("display_name", "name", "description", "category")
    readonly_fields = ("id", "portrait", "created_at", "updated_at")
    actions = ("activate", "retire")
    save_on_top = True
    show_facets = admin.ShowFacets.NEVER
    fieldsets = (
        (None, {"fields": ("display_name", "is_active", "system_instructions")}),
        ("First contact", {"fields": ("initial_greeting", "suggested_messages", "deflection")}),
        ("In the list", {"fields": ("name", "category", "description", "avatar_url", "portrait")}),
        ("Character and model", {"fields": ("personality_traits", "model", "temperature", "max_output_tokens")}),
        ("Record", {"classes": ("collapse",), "fields": ("id", "created_at", "updated_at", "metadata")}),
    )

    class Media:
        js = ("personas/instructions.js",)
        css = {"all": ("personas/instructions.css",)}

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Influencer | None:
        return None if "\x00" in object_id else super().get_object(request, object_id, from_field)

    @admin.display(description="picture")
    def portrait(self, influencer: Influencer) -> str:
        if not influencer.avatar_url:
            return "–"
        return format_html(
            '<img src="{}" alt="" width="48" height="48" style="border-radius:50%" loading="lazy">',
            influencer.avatar_url,
        )

    @admin.action(description="Activate the selected personas", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: InfluencerQuerySet) -> None:
        self._set_status(request, queryset, Influencer.Status.ACTIVE, "activated")

    @admin.action(description="Retire the selected personas", permissions=["change"])
    def retire(self, request: HttpRequest, queryset: InfluencerQuerySet) -> None:
        self._set_status(request, queryset, Influencer.Status.DISCONTINUED, "retired")

    def _set_status(
        self, request: HttpRequest, influencers: InfluencerQuerySet, status: Influencer.Status, done: str
    ) -> None:
        for influencer in influencers.exclude(is_active=status):
            self.log_change(request, influencer, f"Status set to {status}.")
        changed = set_status(influencers=influencers, status=status)
        self.message_user(request, f"{changed} persona{'' if changed == 1 else 's'} {done}.", messages.SUCCESS)

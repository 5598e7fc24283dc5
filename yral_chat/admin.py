"""Staff, their groups and their logins: pages of Django and Axes, in the theme of the others."""

import json
from typing import Any

from axes.admin import AccessAttemptAdmin, AccessLogAdmin
from axes.models import AccessAttempt, AccessLog
from django.contrib import admin
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.text import Truncator
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget as GroupBoxes

from yral_chat.desk import readable
from yral_chat.staff import DeskAdmin, ReadOnlyAdmin

admin.site.unregister([User, Group])


class Rights(DeskAdmin):
    """Who changes rights leaves in the log what stood there before and after, as Django's history shows it. Superusers
    alone do: whoever writes here can make themselves one, or set a superuser's password."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return _is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _is_superuser(request)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        message = super().construct_change_message(request, form, formsets, add)
        if not hasattr(form, "cleaned_data") or not hasattr(form, "instance"):
            return message
        before = {} if add else form.initial
        said = [_change(form, name, before.get(name)) for name in form.changed_data if name in form.cleaned_data]
        fields = [one for one in said if one]
        kept = [one for one in message if "changed" not in one]
        return [*kept, *([{"changed": {"fields": fields}}] if fields else [])] or message

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """With the rights that went."""
        assert isinstance(request.user, User)
        for one in queryset:
            rights = _written(getattr(one, "groups", None) or one.permissions)
            message = [{"deleted": {"name": str(one._meta.verbose_name), "object": f"{one} ({rights})"}}]
            LogEntry.objects.log_actions(request.user.pk, [one], DELETION, change_message=message)


def _is_superuser(request: HttpRequest) -> bool:
    return isinstance(request.user, User) and request.user.is_active and request.user.is_superuser


def _change(form: Any, name: str, before: Any) -> str:
    label = form.fields[name].label or name
    if "password" in name:
        return str(label)
    return f"{label} (before: {_written(before)}; after: {_written(form.cleaned_data[name])})"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "all"):
        value = value.all()
    if isinstance(value, QuerySet | list | tuple):
        return ", ".join(sorted(str(getattr(one, "name", one)) for one in value)) or "none"
    return str(value) if value not in (None, "") else "none"


@admin.register(User)
class StaffAdmin(Rights, UserAdmin, DeskAdmin):
    """Rights come from groups alone, so that one can see who may do what."""

    form, add_form, change_password_form = UserChangeForm, UserCreationForm, AdminPasswordChangeForm
    list_display = ("username", "first_name", "last_name", "is_active", "is_superuser", "last_login")
    list_filter = ("is_active", "is_superuser", "groups")
    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "password", "first_name", "last_name", "email")}),
        ("What they may do", {"fields": ("is_active", "is_staff", "groups", "is_superuser")}),
        ("Record", {"fields": ("last_login", "date_joined")}),
    )

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """The record of what somebody did would go with them: they are switched off instead."""
        *found, needed, protected = super().get_deleted_objects(objs, request)
        acted = User.objects.filter(pk__in=[one.pk for one in objs], logentry__isnull=False).distinct()
        kept = [f"The record of what {one} did here" for one in acted]
        return *found, needed - {str(LogEntry._meta.verbose_name)}, [*protected, *kept]

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs |= {"widget": GroupBoxes(), "help_text": "They get the rights of all their groups."}
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Boxes don't learn of a group that is made in a pop-up, so that there is none."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field and db_field.name == "groups":
            field.widget = getattr(field.widget, "widget", field.widget)
        return field


@admin.register(Group)
class StaffGroupAdmin(Rights, GroupAdmin, DeskAdmin):
    pass


@admin.register(LogEntry)
class ChangeAdmin(ReadOnlyAdmin):
    """Who changed what, also of what is gone. For superusers: it holds what stood there before and after."""

    list_display = ("action_time", "user", "content_type", "object_repr", "action_flag", "summary")
    list_select_related = ("user", "content_type")
    list_filter = (
        "action_flag",
        ("content_type", admin.RelatedOnlyFieldListFilter),
        ("user", admin.RelatedOnlyFieldListFilter),
    )
    search_fields = ("object_repr", "object_id__exact", "user__username__exact")
    search_help_text = "The name or the whole id of what was changed, or the name of a colleague."
    ordering = ("-id",)
    fields = readonly_fields = (
        "action_time",
        "user",
        "content_type",
        "object_repr",
        "object_id",
        "action_flag",
        "record",
    )

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _is_superuser(request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return _is_superuser(request)

    @admin.display(description="what")
    def summary(self, entry: LogEntry) -> str:
        return Truncator(entry.get_change_message()).chars(120)

    @admin.display(description="before and after")
    def record(self, entry: LogEntry) -> str:
        try:
            return readable(json.loads(entry.change_message), None)
        except ValueError:
            return entry.change_message or "–"


class NothingToEdit:
    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(AccessAttempt)
class FailedLoginAdmin(NothingToEdit, AccessAttemptAdmin, DeskAdmin):  # type: ignore[misc]
    """Deleting one lets that person try again."""

    list_display = ("username", "status", "failures_since_start", "ip_address", "attempt_time", "user_agent")


@admin.register(AccessLog)
class LoginAdmin(NothingToEdit, AccessLogAdmin, DeskAdmin):  # type: ignore[misc]
    list_display = ("username", "attempt_time", "logout_time", "ip_address", "user_agent")

"""Staff read what users said and sent only with a reason, which is kept.

A page that shows any of it looks whether its own permission is there, and then begins with

    if asked := ask_first(request, conversation_id):
        return asked

and one that shows a file with `ask_first_for_files`. Superusers are asked, too. A reason holds for an hour, for one
person and one conversation (or one user's files).
"""

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from conversations.models import Conversation, Reading
from media_uploads import storage
from media_uploads.models import MediaUpload
from yral_chat.proxies import address_of

VALID_FOR = dt.timedelta(hours=1)
FEWEST_WORDS = 3
NAME = "conversations_conversation"


def ask_first(request: HttpRequest, conversation_id: uuid.UUID) -> HttpResponse | None:
    """None: this person may read it now. Else the way to the page that asks why, which leads back here."""
    if may_read(request, conversation_id):
        return None
    return _to_the_question(request, reverse(f"admin:{NAME}_reason", args=[conversation_id]))


def ask_first_for_files(request: HttpRequest, upload: MediaUpload) -> HttpResponse | None:
    """As ask_first, for all that one user uploaded."""
    if _given(request).filter(conversation_id=None, user_id=upload.owner_id).exists():
        return None
    return _to_the_question(request, reverse(f"admin:{NAME}_file_reason", args=[upload.pk]))


def may_read(request: HttpRequest, conversation_id: uuid.UUID) -> bool:
    return bool(_given(request).filter(conversation_id=conversation_id).exists())


def may_be_read(request: HttpRequest, conversation: str) -> Exists:
    """For a list: whether the conversation that each row's field `conversation` names may be read now."""
    return Exists(_given(request).filter(conversation_id=OuterRef(conversation)))


def _given(request: HttpRequest) -> Any:
    return Reading.objects.valid_of(request.user.pk)


def _to_the_question(request: HttpRequest, address: str) -> HttpResponse:
    """What was sent by a form isn't sent again: that leads to the conversation instead."""
    query = {"next": request.get_full_path()} if request.method == "GET" else {}
    return HttpResponseRedirect(f"{address}?{urlencode(query)}" if query else address)


# The pages


@dataclass(frozen=True)
class Subject:
    """What is to be read: a conversation, or a user's files."""

    user_id: str
    lies_at: str  # the page to go on to, unless another one sent here
    conversation_id: uuid.UUID | None = None
    persona: str = ""


class ReasonForm(forms.Form):
    purpose = forms.ChoiceField(
        label="What for", choices=[("", "Choose …"), *Reading.Purpose.choices], widget=UnfoldAdminSelectWidget
    )
    reason = forms.CharField(
        label="Why, in your words",
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="For example “Ticket 4711: her voice notes aren't answered”. Leave out what is private.",
    )

    def clean_reason(self) -> str:
        reason = str(self.cleaned_data["reason"])
        if sum(any(map(str.isalnum, word)) for word in reason.split()) < FEWEST_WORDS:
            raise forms.ValidationError(f"Say why in a few words: {FEWEST_WORDS} at least.")
        return reason


def urls() -> list[URLPattern]:
    return [
        path("<uuid:conversation_id>/reason/", site.admin_view(conversation_reason), name=f"{NAME}_reason"),
        path("file/<uuid:upload_id>/", site.admin_view(file_page), name=f"{NAME}_file"),
        path("file/<uuid:upload_id>/reason/", site.admin_view(file_reason), name=f"{NAME}_file_reason"),
    ]


def conversation_reason(request: HttpRequest, conversation_id: uuid.UUID) -> HttpResponse:
    _only_with(request, "conversations.view_message", "conversations.view_turn")
    found = Conversation.objects.select_related("influencer").filter(pk=conversation_id).first()
    if found is None:
        raise Http404
    subject = Subject(found.user_id, read_address(found.pk), found.pk, found.influencer.display_name)
    return _reason_page(request, subject, _given(request).filter(conversation_id=found.pk))


def file_reason(request: HttpRequest, upload_id: uuid.UUID) -> HttpResponse:
    upload = _upload(request, upload_id)
    subject = Subject(upload.owner_id, reverse(f"admin:{NAME}_file", args=[upload.pk]))
    return _reason_page(request, subject, _given(request).filter(conversation_id=None, user_id=upload.owner_id))


def file_page(request: HttpRequest, upload_id: uuid.UUID) -> HttpResponse:
    """The only page that leads to a user's file."""
    upload = _upload(request, upload_id)
    if asked := ask_first_for_files(request, upload):
        return asked
    url = storage.url_for(upload.storage_key, settings.SCRIPT_NAME)
    return _page(request, "conversations/file.html", f"File of {upload.owner_id}", upload=upload, url=url)


def read_address(conversation_id: uuid.UUID) -> str:
    """Of its messages, from the first on."""
    messages = reverse("admin:conversations_message_changelist")
    return f"{messages}?conversation__id__exact={conversation_id}&o=0"


def _upload(request: HttpRequest, upload_id: uuid.UUID) -> MediaUpload:
    _only_with(request, "media_uploads.view_mediaupload")
    upload = MediaUpload.objects.filter(pk=upload_id).first()
    if upload is None:
        raise Http404
    return upload


def _only_with(request: HttpRequest, *permissions: str) -> None:
    if not (isinstance(request.user, User) and any(map(request.user.has_perm, permissions))):
        raise PermissionDenied


def _reason_page(request: HttpRequest, subject: Subject, given: Any) -> HttpResponse:
    then = _next(request, subject)
    if request.method != "POST" and given.exists():
        return HttpResponseRedirect(then)
    form = ReasonForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        _keep(request, subject, form.cleaned_data)
        return HttpResponseRedirect(then)
    return _page(request, "conversations/reason.html", "Why do you read this?", form=form, subject=subject, then=then)


def _keep(request: HttpRequest, subject: Subject, said: dict[str, str]) -> Reading:
    assert isinstance(request.user, User)
    address, now = address_of(request.META.get("REMOTE_ADDR") or ""), timezone.now()
    return Reading.objects.create(
        reader=request.user,
        user_id=subject.user_id,
        conversation_id=subject.conversation_id,
        persona=subject.persona,
        purpose=said["purpose"],
        reason=said["reason"],
        address=str(address) if address else None,
        created_at=now,
        valid_until=now + VALID_FOR,
    )


def _next(request: HttpRequest, subject: Subject) -> str:
    """A page of the admin, and no other."""
    asked = request.POST.get("next") or request.GET.get("next") or ""
    ours = asked.startswith(reverse("admin:index")) and url_has_allowed_host_and_scheme(asked, allowed_hosts=None)
    return asked if ours else subject.lies_at


def _page(request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
    style = forms.Media(css={"all": ("yral_chat/staff.css", "personas/desk.css")})
    shared = {**site.each_context(request), "title": title, "heading": title, "media": style}
    return TemplateResponse(request, template, {**shared, **context})

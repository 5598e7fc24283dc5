"""The desk's pages of a persona's tests: its messages, what is expected of the answers, and how runs went."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.forms import BaseFormSet, formset_factory
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from conversations import expectations, sample_runs, tries
from conversations.languages import LANGUAGES
from conversations.models import SampleMessage, SampleResult, SampleRun
from conversations.persona_pages import PersonaPage
from conversations.sample_runs import Progress, last_published_run, last_run, progress_of
from personas import versions
from personas.desk import may
from personas.models import digest_of
from yral_chat.errors import Conflict

MOST_EXPECTATIONS, SPARE_LINES = 10, 3
TO_LOOK, TO_WRITE = ("view", "change", "publish"), ("change", "publish")


class MessageForm(forms.Form):
    message = forms.CharField(
        label="A user's message",
        max_length=4000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="The persona answers it as the first message after its greeting.",
    )


class ExpectationForm(forms.Form):
    kind = forms.ChoiceField(
        label="The answer",
        required=False,
        choices=[("", "–"), *expectations.TITLES.items()],
        widget=UnfoldAdminSelectWidget,
    )
    value = forms.CharField(label="What", required=False, max_length=500, widget=UnfoldAdminTextInputWidget)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        kind, value = cleaned.get("kind", ""), cleaned.get("value", "")
        if value and not kind:
            self.add_error("kind", "Choose what is expected of it.")
        elif kind and not value:
            self.add_error("value", "Say what is expected.")
        elif kind and (wrong := expectations.problem(kind, value)):
            self.add_error("value", wrong)
        return cleaned


Lines = formset_factory(
    ExpectationForm, extra=SPARE_LINES, max_num=MOST_EXPECTATIONS, absolute_max=MOST_EXPECTATIONS, validate_max=True
)


@dataclass(frozen=True)
class Row:
    """A sample of the persona's, its result in the newest run, and the one of what was published last."""

    sample: SampleMessage | None
    result: SampleResult | None
    published: SampleResult | None

    @property
    def message(self) -> str:
        return self.sample.message if self.sample else self.result.message if self.result else ""

    @property
    def expected(self) -> list[str]:
        listed = self.sample.expectations if self.sample else self.result.expectations if self.result else []
        return [f"{expectations.TITLES[one['kind']]}: {one['value']}" for one in listed]


class TestsPage(PersonaPage):
    """All messages, with the newest run of the draft (or of what is live) beside the last published one."""

    for_those_who_may = TO_LOOK

    def get(self, request: HttpRequest) -> HttpResponse:
        version = self.state.draft or versions.live_version(self.state.persona)
        run = last_run(version) if version else None
        published = last_published_run(self.state.persona, before=run)
        samples = list(SampleMessage.objects.filter(influencer=self.state.persona))
        mine, theirs = _by_sample(run), _by_sample(published)
        return self.page(
            "conversations/tests.html",
            "Tests",
            rows=[Row(one, mine.get(one.pk), theirs.get(one.pk)) for one in samples],
            run=run,
            published=published,
            progress=progress_of(run) if run else None,
            published_progress=progress_of(published) if published else None,
            is_stale=bool(run and version and digest_of(run.content) != digest_of(version.content)),
            may_write=may(request, *TO_WRITE),
        )


def _by_sample(run: SampleRun | None) -> dict[int | None, SampleResult]:
    return {result.sample_id: result for result in run.results.all()} if run else {}


class SamplePage(PersonaPage):
    """One message and what is expected; a new one without an id."""

    def get(self, request: HttpRequest, sample_id: int | None = None) -> HttpResponse:
        sample = self._sample(sample_id)
        lines = Lines(initial=sample.expectations if sample else None)
        form = MessageForm(initial={"message": sample.message if sample else ""})
        return self._shown(sample, form, lines, revision=sample_runs.revision_of(sample) if sample else "")

    def post(self, request: HttpRequest, sample_id: int | None = None) -> HttpResponse:
        sample = self._sample(sample_id)
        if sample and "_delete" in request.POST:
            sample_runs.delete_sample(sample=sample, author=_staff(request))
            return self._done("The message is deleted. Earlier runs keep theirs.")
        form, lines = MessageForm(request.POST), Lines(request.POST)
        if not (form.is_valid() and lines.is_valid()):
            return self._shown(sample, form, lines, revision=request.POST.get("revision", ""))
        try:
            sample_runs.save_sample(
                sample=sample or SampleMessage(influencer=self.state.persona),
                message=form.cleaned_data["message"].replace("\r\n", "\n"),
                expected=[line for line in lines.cleaned_data if line.get("kind")],
                author=_staff(request),
                revision=request.POST.get("revision", ""),
            )
        except Conflict as exc:
            form.add_error("message", str(exc))
            now = sample and SampleMessage.objects.filter(pk=sample.pk).first()
            return self._shown(now or sample, form, lines, revision=sample_runs.revision_of(now) if now else "")
        return self._done("The message is saved.")

    def _sample(self, sample_id: int | None) -> SampleMessage | None:
        if sample_id is None:
            return None
        known = SampleMessage.objects.filter(influencer=self.state.persona)
        found = known.filter(pk=sample_id).first() if sample_id < 2**63 else None
        if found is None:
            raise Http404
        return found

    def _shown(
        self, sample: SampleMessage | None, form: MessageForm, lines: BaseFormSet, *, revision: str
    ) -> HttpResponse:
        heading = "Test message" if sample else "New test message"
        known = {
            "sample": sample,
            "form": form,
            "lines": lines,
            "revision": revision,
            "languages": ", ".join(LANGUAGES),
        }
        return self.page("conversations/sample.html", heading, **known)

    def _done(self, said: str) -> HttpResponse:
        messages.success(self.request, said)
        return HttpResponseRedirect(self.state.addresses["tests"])


class StartRun(PersonaPage):
    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        try:
            run = sample_runs.start(influencer=self.state.persona, author=_staff(request))
        except Conflict as exc:
            messages.error(request, str(exc))
            return HttpResponseRedirect(self.state.addresses["tests"])
        return HttpResponseRedirect(f"{self.state.addresses['tests']}runs/{run.pk}/")


class RunPage(PersonaPage):
    """A run with its answers; while it isn't complete, the page makes its steps."""

    for_those_who_may = TO_LOOK

    def get(self, request: HttpRequest, run_id: int) -> HttpResponse:
        run = run_of(self, run_id)
        return self.page(
            "conversations/run.html",
            f"Tests of {versions.name_of(run.version) if run.version.number else 'the draft'}",
            run=run,
            progress=progress_of(run),
            rows=[Row(None, result, None) for result in run.results.all()],
            may_write=may(request, *TO_WRITE),
        )


class NextStep(PersonaPage):
    """The next sample of a run. JSON, for the run's page."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest, run_id: int) -> HttpResponse:
        run = run_of(self, run_id)
        try:
            result = sample_runs.step(run=run, staff=_staff(request))
        except tries.TooMany as exc:
            answer = JsonResponse({"message": str(exc), "retry_after": exc.retry_after}, status=429)
            answer["Retry-After"] = str(exc.retry_after)
            return answer
        return JsonResponse(_json(progress_of(run), result))


def _json(progress: Progress, result: SampleResult | None) -> dict[str, Any]:
    step = {"place": result.place, "state": result.state, "answer": result.answer} if result else None
    return {"total": progress.total, "done": progress.done, "red": progress.red, "step": step}


def run_of(page: PersonaPage, run_id: int) -> SampleRun:
    runs = SampleRun.objects.filter(version__influencer=page.state.persona).select_related("version__influencer")
    found = runs.filter(pk=run_id).first() if run_id < 2**63 else None
    if found is None:
        raise Http404
    return found


def _staff(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user

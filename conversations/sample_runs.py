"""A persona's test set, asked of a version, one sample at a time. Whoever has the page open makes the next step: a run
that nobody watches stands still, and goes on where it was."""

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone

from conversations import tries
from conversations.expectations import TITLES, judged
from conversations.models import Message, SampleMessage, SampleResult, SampleRun
from personas import audit, versions
from personas.models import Influencer, PersonaVersion, digest_of
from yral_chat.database import release_connection, write_transaction
from yral_chat.errors import Conflict

MOST_SAMPLES = 50
GIVEN_UP = dt.timedelta(seconds=60)  # longer than an answer takes: who asked is gone
LOOKED_BACK = 20  # runs
State = SampleResult.State
JUDGED = (State.GREEN, State.RED)


@write_transaction()
def save_sample(
    *, sample: SampleMessage, message: str, expected: list[dict[str, str]], author: User, revision: str = ""
) -> None:
    """A new one or a changed one; the persona's log has both texts. Raises Conflict if the persona has too many, or if
    somebody changed or deleted this one since `revision`."""
    known = SampleMessage.objects.filter(influencer=sample.influencer_id)
    if sample.pk is None and known.count() >= MOST_SAMPLES:
        raise Conflict(f"A persona has at most {MOST_SAMPLES} tests.", reason="too_many_samples")
    before = "" if sample.pk is None else f"Before: {_written(_as_it_is(sample, revision))}\n"
    sample.message, sample.expectations = message, expected
    sample.save()
    did = "Changed a test." if before else "Wrote a test."
    audit.record(author, sample.influencer, did, {}, note=f"{before}Now: {_written(sample)}")


def _as_it_is(sample: SampleMessage, revision: str) -> SampleMessage:
    stored = SampleMessage.objects.select_for_update(no_key=True).filter(pk=sample.pk).first()
    if stored is None:
        raise Conflict("Somebody deleted this test meanwhile: write yours as a new one.", reason="deleted")
    if revision_of(stored) != revision:
        theirs = f"Somebody changed this test meanwhile. It says now: {_written(stored)}."
        raise Conflict(f"{theirs} Yours is here: save again to put it in place of theirs.", reason="changed_meanwhile")
    return stored


def revision_of(sample: SampleMessage) -> str:
    """Another one after each change. Forms carry it."""
    return hashlib.sha256(_written(sample).encode()).hexdigest()[:32]


@write_transaction()
def delete_sample(*, sample: SampleMessage, author: User) -> None:
    audit.record(author, sample.influencer, "Deleted a test.", {}, note=f"Before: {_written(sample)}")
    sample.delete()


def _written(sample: SampleMessage) -> str:
    expected = "; ".join(f"{TITLES[one['kind']]} {one['value']}" for one in sample.expectations)
    return f"“{sample.message}” – {expected or 'an answer'}"


@dataclass(frozen=True)
class Progress:
    total: int
    done: int
    red: int

    @property
    def is_complete(self) -> bool:
        return self.done == self.total


def progress_of(run: SampleRun) -> Progress:
    states = list(run.results.values_list("state", flat=True))
    done = sum(state in JUDGED for state in states)
    return Progress(total=len(states), done=done, red=states.count(State.RED))


@write_transaction()
def start(*, influencer: Influencer, author: User) -> SampleRun:
    """Of the draft, or of what is live if there is none. A run of the same that is under way goes on. Raises
    Conflict without a sample."""
    samples = list(SampleMessage.objects.filter(influencer=influencer))
    if not samples:
        raise Conflict("There is no test yet: add a message first.", reason="no_samples")
    locked = Influencer.objects.select_for_update(no_key=True).get(pk=influencer.pk)
    version = versions.draft_of(locked) or versions.catch_up(influencer_id=locked.pk)
    if version is None:
        raise Conflict("There is nothing to test yet.", reason="no_draft")
    last = last_run(version)
    if last and last.content == version.content and not progress_of(last).is_complete:
        return last
    run = SampleRun.objects.create(version=version, content=version.content, started_by=author)
    SampleResult.objects.bulk_create(
        SampleResult(run=run, sample=one, place=place, message=one.message, expectations=one.expectations)
        for place, one in enumerate(samples, start=1)
    )
    return run


def step(*, run: SampleRun, staff: User) -> SampleResult | None:
    """The next sample's answer, judged; None if nothing waits. Raises TooMany."""
    if not _waiting(run).exists():
        return None
    tries.count_call(staff)
    result = _claimed(run)
    if result is None:
        return None
    persona = run.version.influencer.with_content(run.content)
    greeting = persona.initial_greeting.strip()
    opening = [(str(Message.Role.ASSISTANT), (greeting,))] if greeting else []
    prompt = tries.prompt_of(persona, [*opening, (str(Message.Role.USER), (result.message,))])
    release_connection()
    _keep(result, tries.ask(persona, prompt))
    return result


def _waiting(run: SampleRun) -> QuerySet[SampleResult]:
    abandoned = Q(state=State.ASKING, asked_at__lt=timezone.now() - GIVEN_UP)
    return run.results.filter(Q(state=State.WAITING) | abandoned).order_by("place")


@write_transaction()
def _claimed(run: SampleRun) -> SampleResult | None:
    """Two who step at once get two samples, or one of them none."""
    result = _waiting(run).select_for_update(skip_locked=True).first()
    if result is None:
        return None
    now = timezone.now()
    this = SampleResult.objects.filter(pk=result.pk, state=result.state, asked_at=result.asked_at)
    if not this.update(state=State.ASKING, asked_at=now):
        return None
    result.state, result.asked_at = State.ASKING, now
    return result


def _keep(result: SampleResult, outcome: tries.Outcome) -> None:
    """Unless somebody took it over, because this came too late."""
    judgements = [judged(one["kind"], one["value"], outcome.text) for one in result.expectations]
    holds = not outcome.error and all(one.holds for one in judgements)
    values = {
        "state": State.GREEN if holds else State.RED,
        "answer": outcome.text,
        "error": outcome.error,
        "judgements": [] if outcome.error else [asdict(one) for one in judgements],
        "model": outcome.tally.model[:100],
        "tokens": outcome.tally.usage.total,
        "seconds": round(outcome.seconds, 2),
        "cost_usd": outcome.cost,
    }
    with write_transaction():
        SampleResult.objects.filter(pk=result.pk, state=State.ASKING, asked_at=result.asked_at).update(**values)
    for name, value in values.items():
        setattr(result, name, value)


def runs_of(version: PersonaVersion) -> list[SampleRun]:
    """The newest first, of the latest ones. A draft has those of drafts that said the same, too: it may have been set
    aside and restored, or brought in from a file."""
    runs = SampleRun.objects.filter(version__influencer=version.influencer_id).select_related("version__influencer")
    if version.published_at:
        return list(runs.filter(version=version)[:LOOKED_BACK])
    drafted, said = runs.filter(version__published_at=None)[:LOOKED_BACK], digest_of(version.content)
    return [run for run in drafted if run.version_id == version.pk or digest_of(run.content) == said]


def last_run(version: PersonaVersion) -> SampleRun | None:
    return next(iter(runs_of(version)), None)


def last_published_run(influencer: Influencer, before: SampleRun | None = None) -> SampleRun | None:
    """What to compare with: the newest run of the newest published version that has one."""
    runs = SampleRun.objects.filter(version__influencer=influencer, version__published_at__isnull=False)
    if before:
        runs = runs.exclude(version=before.version)
    return runs.select_related("version__influencer").order_by("-version__number", "-pk").first()


def objections(draft: PersonaVersion) -> Iterable[versions.Objection]:
    """What the test set says against publishing. Registered in apps.py."""
    runs = runs_of(draft)
    if not runs and not SampleMessage.objects.filter(influencer=draft.influencer_id).exists():
        return
    address = reverse("admin:persona_tests", args=[quote(draft.influencer_id)])
    if not runs:
        yield versions.Objection("The tests haven't run with this draft.", address)
        return
    run, progress, standing = runs[0], progress_of(runs[0]), _standing(runs)
    if red := standing.count(State.RED):
        tests = "1 test is" if red == 1 else f"{red} tests are"
        yield versions.Objection(f"{tests} red, of {len(standing)}.", address, needs_reason=True)
    if digest_of(run.content) != digest_of(draft.content):
        yield versions.Objection("The draft was changed since its tests ran.", address)
    elif not progress.is_complete:
        yield versions.Objection(f"Only {progress.done} of {progress.total} tests have run.", address)


def _standing(runs: list[SampleRun]) -> list[str]:
    """How each test came out last. A run that was broken off takes nothing back of those before it."""
    states: dict[object, str] = {}
    for run in runs:
        results = list(run.results.all())
        for result in results:
            test = result.sample_id or result.message
            if states.get(test) not in JUDGED:
                states[test] = result.state
        if all(result.state in JUDGED for result in results):
            break
    return list(states.values())

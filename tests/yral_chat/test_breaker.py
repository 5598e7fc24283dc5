"""The circuit breaker, and the fallback model: seen from the API, the model's server, and /health."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conversations.models import Conversation, Turn
from tests.conftest import Api
from tests.fake_gemini import REPLY, Answer, FakeGemini, fails, says
from yral_chat import ai
from yral_chat.ai.breaker import Breaker
from yral_chat.ai.retrying import TryAgain

DOWN = TryAgain("down")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def shift(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def turn(breaker: Breaker, error: BaseException | None = None) -> None:
    """One turn that ends so. Raises BreakerOpen if it isn't let through."""
    try:
        with breaker.guarding():
            if error:
                raise error
    except ai.BreakerOpen:
        raise
    except BaseException:
        pass


def state_of(breaker: Breaker) -> str:
    return breaker.state


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        turn(breaker, DOWN)


def test_it_opens_at_twenty_failures(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 19)
    assert state_of(breaker) == "closed"
    fail(breaker, 1)

    assert state_of(breaker) == "open"
    with pytest.raises(ai.BreakerOpen) as refused:
        turn(breaker)
    assert refused.value.retry_after == 5


def test_it_stays_closed_while_fewer_than_half_fail(breaker: Breaker, clock: Clock) -> None:
    for _ in range(60):
        turn(breaker)
    fail(breaker, 59)
    assert state_of(breaker) == "closed"

    fail(breaker, 1)
    assert state_of(breaker) == "open"


def test_it_counts_the_last_thirty_seconds(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 19)
    clock.shift(31)
    fail(breaker, 19)
    assert state_of(breaker) == "closed"
    clock.shift(29)
    fail(breaker, 1)

    assert state_of(breaker) == "open"


def test_old_successes_do_not_hide_that_it_is_down_now(breaker: Breaker, clock: Clock) -> None:
    for _ in range(500):
        turn(breaker)
    clock.shift(31)
    fail(breaker, 20)

    assert state_of(breaker) == "open"


def test_after_five_seconds_one_probe_is_let_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 20)
    clock.shift(4.9)
    with pytest.raises(ai.BreakerOpen):
        turn(breaker)
    clock.shift(0.2)
    assert state_of(breaker) == "half_open"

    with breaker.guarding():
        with pytest.raises(ai.BreakerOpen):
            turn(breaker)
        assert state_of(breaker) == "half_open"
    assert state_of(breaker) == "closed"
    fail(breaker, 19)
    assert state_of(breaker) == "closed", "it counts from the start"


def test_a_probe_that_fails_opens_it_for_another_five_seconds(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 20)
    clock.shift(5.1)
    turn(breaker, DOWN)

    assert state_of(breaker) == "open"
    assert breaker.seconds_left() == pytest.approx(5)
    clock.shift(5.1)
    turn(breaker)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("error", [ai.Stopped("by the user"), ValueError("a bug"), GeneratorExit()], ids=repr)
def test_what_says_nothing_about_the_model_is_not_counted(breaker: Breaker, clock: Clock, error: BaseException) -> None:
    fail(breaker, 19)
    for _ in range(40):
        turn(breaker, error)
    fail(breaker, 1)
    assert state_of(breaker) == "open"

    clock.shift(5.1)
    turn(breaker, error)
    assert state_of(breaker) == "half_open", "the next one is the probe"


def test_a_request_that_is_refused_for_itself_says_nothing_about_others(breaker: Breaker) -> None:
    for _ in range(40):
        turn(breaker, ai.ModelRefused("400", ours=True))
    assert state_of(breaker) == "closed"

    for _ in range(20):
        turn(breaker, ai.ModelRefused("403"))
    assert state_of(breaker) == "open"


def test_a_probe_closes_it_with_the_first_piece_of_its_answer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 20)
    clock.shift(5.1)

    with breaker.guarding() as answers:
        answers()
        assert state_of(breaker) == "closed"
        turn(breaker)
    fail(breaker, 19)
    assert state_of(breaker) == "closed"


def test_an_answer_that_cannot_be_used_is_a_sign_of_life(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 19)
    for _ in range(40):
        turn(breaker, ai.UnusableAnswer("empty"))
    fail(breaker, 1)

    assert state_of(breaker) == "closed"


def test_of_many_threads_one_is_the_probe() -> None:
    breaker = Breaker()
    fail(breaker, 20)
    breaker.PAUSE = 0.0
    inside, release = threading.Event(), threading.Event()

    def probe() -> None:
        with breaker.guarding():
            inside.set()
            assert release.wait(5)

    def other() -> bool:
        try:
            turn(breaker)
        except ai.BreakerOpen:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(probe)
        assert inside.wait(5)
        assert not any(future.result() for future in [pool.submit(other) for _ in range(19)])
        release.set()
        first.result()
    assert state_of(breaker) == "closed"


# Seen from outside


@pytest.mark.django_db
def test_a_dead_model_is_not_hammered_and_comes_back(
    alice: Api, nobody: Api, conversation: Conversation, gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemini.default = fails(403)
    for number in range(20):
        assert alice.send(conversation, f"question {number}").status_code == 503
    asked = len(gemini.requests)

    refused = alice.send(conversation, "one more")

    assert (refused.status_code, refused.json()["error"]) == (503, "ai_service_unavailable")
    assert 1 <= int(refused["Retry-After"]) <= 5
    assert len(gemini.requests) == asked, "the model isn't asked"
    assert Turn.objects.get(question__content="one more").state == "failed"
    health = nobody.get("/health").json()
    assert (health["status"], health["services"]["gemini_api"]["status"]) == ("healthy", "down")
    assert "circuit breaker" in health["services"]["gemini_api"]["error"]

    gemini.default = says(REPLY)
    monkeypatch.setattr(Breaker, "PAUSE", 0.0)
    assert alice.send(conversation, "one more").status_code == 200
    assert len(gemini.requests) == asked + 1
    assert nobody.get("/health").json()["services"]["gemini_api"]["status"] == "up"


@pytest.fixture
def fallback(settings: Any) -> str:
    settings.GEMINI_FALLBACK_MODEL = "gemini-2.5-flash-lite"
    return "gemini-2.5-flash-lite"


def models_asked(gemini: FakeGemini) -> list[str]:
    return [asked.path.rpartition("/")[2].partition(":")[0] for asked in gemini.requests]


def down(model: str, **fields: Any) -> Any:
    """For gemini.chooses: one model is down, the others answer."""
    answer = fails(403)
    for name, value in fields.items():
        setattr(answer, name, value)
    return lambda asked: answer if f"/{model}:" in asked.path else says(REPLY)


@pytest.mark.django_db
def test_the_fallback_answers_when_the_first_model_is_down(
    alice: Api, conversation: Conversation, gemini: FakeGemini, fallback: str
) -> None:
    gemini.chooses = down("gemini-2.5-flash")

    assert alice.send(conversation).status_code == 200

    assert models_asked(gemini) == ["gemini-2.5-flash", fallback]
    turn = Turn.objects.get()
    assert (turn.state, turn.model, turn.attempts) == ("done", fallback, 2)


@pytest.mark.django_db
def test_it_gets_its_chance_within_the_deadline_when_the_first_model_hangs(
    alice: Api, conversation: Conversation, gemini: FakeGemini, fallback: str, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 2
    gemini.chooses = down("gemini-2.5-flash", delay=3)

    assert alice.send(conversation).status_code == 200
    assert models_asked(gemini)[-1] == fallback


@pytest.mark.django_db
def test_with_both_down_it_is_503_and_the_first_reason(
    alice: Api, conversation: Conversation, gemini: FakeGemini, fallback: str
) -> None:
    gemini.default = fails(403)

    assert alice.send(conversation).status_code == 503
    assert models_asked(gemini) == ["gemini-2.5-flash", fallback]
    assert Turn.objects.get().error_code == "NO_PROVIDER"


@pytest.mark.django_db
def test_it_is_not_asked_while_the_first_model_answers_or_blocks(
    alice: Api, conversation: Conversation, gemini: FakeGemini, fallback: str
) -> None:
    gemini.will(Answer({"promptFeedback": {"blockReason": "SAFETY"}}))
    alice.send(conversation, "one")
    alice.send(conversation, "two")

    assert set(models_asked(gemini)) == {"gemini-2.5-flash"}


@pytest.mark.django_db
def test_with_the_first_breaker_open_it_is_asked_at_once(
    alice: Api, conversation: Conversation, gemini: FakeGemini, fallback: str
) -> None:
    gemini.chooses = down("gemini-2.5-flash")
    for number in range(21):
        assert alice.send(conversation, f"question {number}").status_code == 200

    assert models_asked(gemini)[-2:] == [fallback, fallback]
    assert models_asked(gemini).count("gemini-2.5-flash") == 20


def test_the_breaker_of_one_model_does_not_stop_another() -> None:
    fail(ai.breaker_of("one"), 20)

    assert ai.breaker_of("one").state == "open"
    assert ai.breaker_of("two").state == "closed"

"""The cast: alice owns it, bob is a stranger, staff edits, and a model that is a real HTTP server."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from django.conf import settings as configured
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client, override_settings

from conversations import sent
from conversations.models import Conversation
from conversations.services import open_conversation
from media_uploads import pictures
from personas.models import Influencer
from tests.fake_gemini import FakeGemini
from tests.scrubber import CANARY as CANARY
from tests.scrubber import Watcher, answers_looked_at, scrubber
from yral_chat import ai, metrics, operations


def pytest_configure(config: pytest.Config) -> None:
    """Without the folder WhiteNoise warns, and a warning fails a test."""
    configured.STATIC_ROOT.mkdir(exist_ok=True)


def token(user_id: str = "alice", *, key: str = "", algorithm: str = "HS256", **claims: Any) -> str:
    """As the login service would issue it; a claim given as None is left out."""
    now = int(time.time())
    made = {"sub": user_id, "iss": "https://auth.yral.com", "iat": now, "exp": now + 600, **claims}
    made = {name: value for name, value in made.items() if value is not None}
    return jwt.encode(made, key or configured.JWT_SECRET_KEY, algorithm=algorithm)


def wait_until(holds: Callable[[], Any], what: str = "it didn't happen", seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Api:
    """A client app: JSON in and out, with the user's token. Answers are Django's, `.json()` reads them."""

    def __init__(self, user_id: str | None = "alice") -> None:
        self.user_id = user_id
        self.client = Client(raise_request_exception=False)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(self.user_id)}"} if self.user_id else {}

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, query, headers=self.headers())

    def post(self, path: str, body: Any) -> Any:
        if isinstance(body, dict):
            scrubber.heard(body.get("content") if body.get("content") != self.user_id else None)  # ids are logged
        return self.client.post(path, body, content_type="application/json", headers=self.headers())

    def delete(self, path: str) -> Any:
        return self.client.delete(path, headers=self.headers())

    # What an app does
    def open(self, influencer: Influencer) -> dict[str, Any]:
        response = self.post("/api/v1/chat/conversations", {"influencer_id": influencer.pk})
        assert response.status_code == 201, response.content
        return dict(response.json())

    def send(self, conversation: Any, content: Any = "Hello!", **fields: Any) -> Any:
        body = {"message_type": "text", "content": content, **fields}
        return self.post(f"/api/v1/chat/conversations/{getattr(conversation, 'pk', conversation)}/messages", body)

    def messages(self, conversation: Any, **query: Any) -> Any:
        return self.get(f"/api/v1/chat/conversations/{getattr(conversation, 'pk', conversation)}/messages", **query)


@pytest.fixture(scope="session", autouse=True)
def _watch_the_log() -> Iterator[None]:
    watcher = Watcher(scrubber)
    logging.getLogger().addHandler(watcher)
    with answers_looked_at():
        yield
    logging.getLogger().removeHandler(watcher)
    scrubber.look_at(metrics.exposition(list).decode(), "/metrics")  # of the whole run: labels stay
    found = scrubber.take()
    assert not found, found


@pytest.fixture(autouse=True)
def _nothing_is_given_away(_watch_the_log: None) -> Iterator[None]:
    """No line and no answer of the test holds a prompt, a key, a token, a signed address or what was said."""
    scrubber.said.clear()
    yield
    found = scrubber.take()
    assert not found, found


@pytest.fixture
def alice() -> Api:
    return Api("alice")


@pytest.fixture
def bob() -> Api:
    return Api("bob")


@pytest.fixture
def nobody() -> Api:
    """Without a token."""
    return Api(None)


@pytest.fixture(scope="session")
def gemini_server() -> Iterator[FakeGemini]:
    fake = FakeGemini()
    with override_settings(GEMINI_BASE_URL=fake.url):  # for the whole run: making a client takes 60 ms
        yield fake
    fake.stop()


@pytest.fixture(scope="session", autouse=True)
def counters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each of the run's processes counts for itself, against limits that no test reaches unless it sets them."""
    path = tmp_path_factory.mktemp("counters") / "rate_limits.db"
    with override_settings(RATE_LIMIT_DATABASE=path, ADMIN_LOGINS_PER_MINUTE=0):
        yield


@pytest.fixture(autouse=True)
def gemini(gemini_server: FakeGemini) -> FakeGemini:
    """The model of every test; no test can reach the real one."""
    gemini_server.reset()
    ai.forget_health()
    operations.forget_status()
    sent._known.clear()  # which texts are stored: the database is a new one
    return gemini_server


@pytest.fixture
def make_influencer(db: None) -> Callable[..., Influencer]:
    made = iter(range(1, 1000))

    def make(**fields: Any) -> Influencer:
        number = next(made)
        values = {
            "name": f"persona-{number}",
            "display_name": f"Persona {number}",
            "category": "fitness",
            "system_instructions": f"You are Persona {number}. {CANARY}",
            "initial_greeting": "Hi, I'm your coach!",
            "suggested_messages": ["Plan my week", "Stretching?", "What to eat?"],
            **fields,
        }
        return Influencer.objects.create(**values)

    return make


@pytest.fixture
def coach(make_influencer: Callable[..., Influencer]) -> Influencer:
    return make_influencer(name="coach", display_name="Coach Asha")


@pytest.fixture
def conversation(coach: Influencer) -> Conversation:
    """alice's, with the coach; it holds the greeting."""
    return open_conversation(influencer_id=coach.pk, user_id="alice")[0]


@pytest.fixture
def media_folder(settings: Any, tmp_path: Path) -> Iterator[Path]:
    """An empty folder of uploads, and an empty cache of pictures."""
    settings.MEDIA_UPLOAD_DIR = tmp_path / "uploads"
    settings.STORAGES = dict(settings.STORAGES)  # Django forgets the storages that it has made
    pictures._cache.clear()
    yield settings.MEDIA_UPLOAD_DIR
    pictures._cache.clear()


@pytest.fixture(autouse=True)
def quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("root", "", "a-password-for-tests")


def member(name: str, group: str) -> User:
    user = User.objects.create_user(name, "", "a-password-for-tests", is_staff=True)
    user.groups.add(Group.objects.get(name=group))
    return user


@pytest.fixture
def editor(db: None) -> User:
    return member("editor", "Content editors")


@pytest.fixture
def publisher(db: None) -> User:
    return member("publisher", "Publishers")


@pytest.fixture
def support(db: None) -> User:
    return member("support", "Support")


@pytest.fixture
def analyst(db: None) -> User:
    return member("analyst", "Analysts")


@pytest.fixture
def desk() -> Callable[[User], Client]:
    """The admin, as seen by a member of staff."""

    def login(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return login


@pytest.fixture
def no_connection_held() -> Iterator[None]:
    """As in a running service: the test's own thread holds no connection of the pool."""
    connection.close()
    yield
    connection.close()


@pytest.fixture
def staff(superuser: User, desk: Callable[[User], Client]) -> list[Client]:
    """Four at once, to race each other."""
    return [desk(superuser) for _ in range(4)]

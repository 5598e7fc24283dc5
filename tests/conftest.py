"""The cast: alice owns it, bob is a stranger, staff edits, and a model that is a real HTTP server."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from django.conf import settings as configured
from django.contrib.auth.models import Group, User
from django.test import Client, override_settings

from conversations.models import Conversation
from conversations.services import open_conversation
from personas.models import Influencer
from tests.fake_gemini import FakeGemini
from yral_chat import ai

CANARY = "CANARY-7f3a-never-shown-to-users"


def token(user_id: str = "alice", *, key: str = "", algorithm: str = "HS256", **claims: Any) -> str:
    """As the login service would issue it; a claim given as None is left out."""
    now = int(time.time())
    made = {"sub": user_id, "iss": "https://auth.yral.com", "iat": now, "exp": now + 600, **claims}
    made = {name: value for name, value in made.items() if value is not None}
    return jwt.encode(made, key or configured.JWT_SECRET_KEY, algorithm=algorithm)


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


@pytest.fixture(autouse=True)
def gemini(gemini_server: FakeGemini) -> FakeGemini:
    """The model of every test; no test can reach the real one."""
    gemini_server.reset()
    ai.forget_health()
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


@pytest.fixture(autouse=True)
def quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("root", "", "a-password-for-tests")


@pytest.fixture
def editor(db: None) -> User:
    """Staff in the group Content editors."""
    user = User.objects.create_user("editor", "", "a-password-for-tests", is_staff=True)
    user.groups.add(Group.objects.get(name="Content editors"))
    return user


@pytest.fixture
def desk() -> Callable[[User], Client]:
    """The admin, as seen by a member of staff."""

    def login(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return login

"""Who may call: a table of forged and odd tokens, the algorithms, and the keys of a key server."""

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.test import Client
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import token

CHATS = "/api/v1/chat/conversations"
MISSING = "Missing authorization header"
WRONG_FORMAT = "Invalid authorization header format. Expected: Bearer <token>"
INVALID = "Invalid token"
EXPIRED = "Token has expired"
WRONG_ISSUER = "Invalid token issuer"
MISSING_SUB = "Invalid token: missing sub"
ISSUER = "https://auth.yral.com"
OTHER_KEY = "another-key-another-key-another-key-another-key"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones, unless changed; ABSENT leaves one out, None stays as null."""
    now = int(time.time())
    made = {"sub": "alice", "iss": ISSUER, "iat": now, "exp": now + 600, **changed}
    return {name: value for name, value in made.items() if value is not ABSENT}


class Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Any = Absent()


def forge(payload: Any, *, header: Any = None, key: str | bytes | None = None, digest: Any = hashlib.sha256) -> str:
    """By hand, with what no library would sign. `payload` and `header` may be raw bytes."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(b64(part) for part in parts)
    key = configured.JWT_SECRET_KEY if key is None else key
    key = key.encode() if isinstance(key, str) else key
    return f"{signed}.{b64(hmac.new(key, signed.encode(), digest).digest())}"


def listing(header: str | None, **query: Any) -> Any:
    headers = {} if header is None else {"Authorization": header}
    return Client(raise_request_exception=False).get(CHATS, query, headers=headers)


def with_token(made: str) -> Any:
    return listing(f"Bearer {made}")


def assert_refused(response: Any, message: str) -> None:
    assert response.status_code == 401, response.content
    assert response.json() == {"error": "unauthorized", "message": message, "details": {}}
    assert response["WWW-Authenticate"].startswith("Bearer")


def assert_welcome(response: Any) -> None:
    assert response.status_code == 200, response.content
    assert response.json()["conversations"] == []


# The header


@pytest.mark.parametrize("header", [None, "", " ", "   \t"])
def test_no_header_or_a_blank_one_is_missing(header: str | None) -> None:
    assert_refused(listing(header), MISSING)


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "bearer    ", "Basic YWxpY2U6cHc=", "Token abc.def.ghi", "Bearer abc def", "abc.def.ghi"],
)
def test_a_header_of_another_form_says_what_is_expected(header: str) -> None:
    assert_refused(listing(header), WRONG_FORMAT)


def test_a_good_token_followed_by_another_word_is_refused() -> None:
    assert_refused(listing(f"Bearer {token()} extra"), WRONG_FORMAT)


def test_a_good_token_without_its_scheme_is_refused() -> None:
    assert_refused(listing(token()), WRONG_FORMAT)


@pytest.mark.django_db
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", " Bearer", "Bearer  "])
def test_the_scheme_is_taken_in_any_case_and_spacing(scheme: str) -> None:
    assert_welcome(listing(f"{scheme} {token()}"))


@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "Authorization", "jwt"])
def test_a_token_in_the_query_is_not_looked_at(name: str) -> None:
    assert_refused(listing(None, **{name: token()}), MISSING)
    assert_refused(listing(None, **{name: f"Bearer {token()}"}), MISSING)


def test_a_token_in_the_body_or_a_cookie_is_not_looked_at(coach: Influencer) -> None:
    client = Client()
    client.cookies["Authorization"] = client.cookies["token"] = token()
    body = {"influencer_id": coach.pk, "token": token(), "access_token": token()}

    assert_refused(client.post(CHATS, body, content_type="application/json"), MISSING)
    assert not Conversation.objects.exists()


# Forged tokens: made at the time of the test, name → (token, message)


def unsigned(alg: str) -> str:
    header = b64(json.dumps({"alg": alg, "typ": "JWT"}).encode())
    return f"{header}.{b64(json.dumps(claims()).encode())}."


def deep(levels: int = 5000) -> bytes:
    return b"[" * levels + b"]" * levels


def tampered() -> str:
    header, _, signature = token().split(".")
    return f"{header}.{b64(json.dumps(claims(sub='bob')).encode())}.{signature}"


FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "alg none": (lambda: unsigned("none"), INVALID),
    "alg None": (lambda: unsigned("None"), INVALID),
    "alg NONE": (lambda: unsigned("NONE"), INVALID),
    "no signature": (lambda: token().rsplit(".", 1)[0] + ".", INVALID),
    "alg empty": (lambda: forge(claims(), header={"alg": "", "typ": "JWT"}), INVALID),
    "alg missing": (lambda: forge(claims(), header={"typ": "JWT"}), INVALID),
    "alg a number": (lambda: forge(claims(), header={"alg": 5}), INVALID),
    "alg a list": (lambda: forge(claims(), header={"alg": ["HS256"]}), INVALID),
    "alg null": (lambda: forge(claims(), header={"alg": None}), INVALID),
    "HS512 with the same key": (lambda: forge(claims(), header={"alg": "HS512"}, digest=hashlib.sha512), INVALID),
    "HS384 with the same key": (lambda: forge(claims(), header={"alg": "HS384"}, digest=hashlib.sha384), INVALID),
    "another key": (lambda: forge(claims(), key=OTHER_KEY), INVALID),
    "an empty key": (lambda: forge(claims(), key=b""), INVALID),
    "a changed payload": (tampered, INVALID),
    "two dots too few": (lambda: "abc", INVALID),
    "one dot too many": (lambda: token() + ".more", INVALID),
    "nothing between dots": (lambda: "..", INVALID),
    "not base64": (lambda: "%%%.###.!!!", INVALID),
    "not ASCII": (lambda: "\xe9\xff.\xfc.\xdf", INVALID),
    "header not JSON": (lambda: forge(claims(), header=b"hello"), INVALID),
    "header not UTF-8": (lambda: forge(claims(), header=b"\xff\xfe\xfd"), INVALID),
    "header a list": (lambda: forge(claims(), header=["HS256"]), INVALID),
    "header null": (lambda: forge(claims(), header=b"null"), INVALID),
    "header nested deeply": (lambda: forge(claims(), header=b'{"alg":' + deep() + b"}"), INVALID),
    "payload nested deeply": (lambda: forge(json.dumps(claims(sub="@")).encode().replace(b'"@"', deep())), INVALID),
    "payload a list": (lambda: forge([1, 2]), INVALID),
    "payload a string": (lambda: forge("alice"), INVALID),
    "payload null": (lambda: forge(b"null"), INVALID),
    "payload not JSON": (lambda: forge(b"hello"), INVALID),
    "payload not UTF-8": (lambda: forge(b'{"sub":"\xff"}'), INVALID),
    "payload with a huge number": (lambda: forge(b'{"exp":' + b"9" * 6000 + b"}"), INVALID),
    "kid a number": (lambda: forge(claims(), header={"alg": "HS256", "kid": 5}), INVALID),
    "kid a list": (lambda: forge(claims(), header={"alg": "HS256", "kid": ["x"]}), INVALID),
    "kid the path of an empty file": (
        lambda: forge(claims(), header={"alg": "HS256", "kid": "../../../dev/null"}, key=b""),
        INVALID,
    ),
    "kid an SQL statement": (
        lambda: forge(claims(), header={"alg": "HS256", "kid": f"x' UNION SELECT '{OTHER_KEY}"}, key=OTHER_KEY),
        INVALID,
    ),
    "a key that it brings along": (
        lambda: forge(
            claims(), header={"alg": "HS256", "jwk": {"kty": "oct", "k": b64(OTHER_KEY.encode())}}, key=OTHER_KEY
        ),
        INVALID,
    ),
    "the address of a key": (
        lambda: forge(claims(), header={"alg": "HS256", "jku": "https://evil.example/keys"}, key=OTHER_KEY),
        INVALID,
    ),
    "the development key": (
        lambda: forge(claims(), key="development-only-jwt-secret-never-used-in-production"),
        INVALID,
    ),
    "an unknown critical header": (
        lambda: forge(claims(), header={"alg": "HS256", "crit": ["exp-of-mine"], "exp-of-mine": 1}),
        INVALID,
    ),
    "b64 false": (lambda: forge(claims(), header={"alg": "HS256", "b64": False, "crit": ["b64"]}), INVALID),
    "wrong issuer": (lambda: forge(claims(iss="https://evil.example")), WRONG_ISSUER),
    "the issuer with a slash": (lambda: forge(claims(iss=ISSUER + "/")), WRONG_ISSUER),
    "part of the issuer": (lambda: forge(claims(iss="https://auth")), WRONG_ISSUER),
    "an empty issuer": (lambda: forge(claims(iss="")), WRONG_ISSUER),
    "no issuer": (lambda: forge(claims(iss=ABSENT)), WRONG_ISSUER),
    "issuer null": (lambda: forge(claims(iss=None)), WRONG_ISSUER),
    "no exp": (lambda: forge(claims(exp=ABSENT)), EXPIRED),
    "expired": (lambda: forge(claims(exp=int(time.time()) - 40)), EXPIRED),
    "expired in 1970": (lambda: forge(claims(exp=0)), EXPIRED),
    "expired before 1970": (lambda: forge(claims(exp=-5)), EXPIRED),
    "exp a word": (lambda: forge(claims(exp="tomorrow")), INVALID),
    "exp a list": (lambda: forge(claims(exp=[1])), INVALID),
    "iat far in the future": (lambda: forge(claims(iat=int(time.time()) + 600)), INVALID),
    "iat in the year 5000": (lambda: forge(claims(iat=95_617_584_000, exp=95_617_584_600)), INVALID),
    "iat a word": (lambda: forge(claims(iat="now")), INVALID),
    "nbf in the future": (lambda: forge(claims(nbf=int(time.time()) + 600)), INVALID),
    "neither user_id nor sub": (lambda: forge(claims(sub=ABSENT)), MISSING_SUB),
    "sub null": (lambda: forge(claims(sub=None)), INVALID),
    "sub empty": (lambda: forge(claims(sub="")), INVALID),
    "sub blank": (lambda: forge(claims(sub=" \u00a0 ")), INVALID),
    "sub a number": (lambda: forge(claims(sub=7)), INVALID),
    "sub with a NUL": (lambda: forge(claims(sub="al\x00ice")), INVALID),
    "sub of 256 characters": (lambda: forge(claims(sub="a" * 256)), INVALID),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_or_odd_token_is_refused(name: str) -> None:
    make, message = FORGED[name]

    assert_refused(with_token(make()), message)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_time_that_is_no_time_is_refused_and_never_a_crash(name: str, number: str) -> None:
    payload = json.dumps(claims(**{name: "HERE"})).replace('"HERE"', number).encode()

    response = with_token(forge(payload))

    assert response.status_code == 401, response.content
    assert response.json()["message"] in (INVALID, EXPIRED)


@pytest.mark.parametrize("verb", ["get", "post", "put", "patch", "delete"])
def test_a_forged_token_is_refused_with_every_method(verb: str, conversation: Conversation) -> None:
    call = getattr(Client(), verb)
    response = call(f"{CHATS}/{conversation.pk}", headers={"Authorization": f"Bearer {unsigned('none')}"})

    assert_refused(response, INVALID)
    assert Conversation.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "changed",
    [
        {"exp": lambda: int(time.time()) - 20},
        {"iat": lambda: int(time.time()) + 20},
        {"nbf": lambda: int(time.time()) + 20},
        {"iat": lambda: ABSENT},
        {"exp": lambda: time.time() + 60.5},
    ],
    ids=["exp 20 s ago", "iat in 20 s", "nbf in 20 s", "no iat", "exp with a fraction"],
)
def test_clocks_may_differ_by_30_seconds(changed: dict[str, Callable[[], Any]]) -> None:
    assert_welcome(with_token(forge(claims(**{name: value() for name, value in changed.items()}))))


def test_the_leeway_is_a_setting(settings: Any) -> None:
    settings.JWT_LEEWAY = 0

    assert_refused(with_token(forge(claims(exp=int(time.time()) - 5))), EXPIRED)


# Whom it speaks for


def opens_as(made: str, influencer: Influencer) -> Any:
    headers = {"Authorization": f"Bearer {made}"}
    return Client(raise_request_exception=False).post(
        CHATS, {"influencer_id": influencer.pk}, content_type="application/json", headers=headers
    )


@pytest.mark.parametrize(
    ("given", "user"),
    [
        ({"sub": "from-sub"}, "from-sub"),
        ({"sub": "from-sub", "user_id": "from-user-id"}, "from-user-id"),
        ({"sub": ABSENT, "user_id": "from-user-id"}, "from-user-id"),
        ({"sub": 12345, "user_id": "beside-an-integer-sub"}, "beside-an-integer-sub"),
        ({"sub": None, "user_id": "beside-a-null-sub"}, "beside-a-null-sub"),
        ({"sub": "", "user_id": "beside-an-empty-sub"}, "beside-an-empty-sub"),
        ({"sub": "odd-jti", "jti": 17}, "odd-jti"),
        ({"sub": "null-jti", "jti": None}, "null-jti"),
        ({"sub": "list-jti", "jti": ["x"]}, "list-jti"),
        ({"sub": "odd-type", "token_type": "refresh"}, "odd-type"),
        ({"sub": "u" * 255}, "u" * 255),
        ({"sub": "देवी 🌱 user@example.com"}, "देवी 🌱 user@example.com"),
        ({"sub": "../../etc/passwd"}, "../../etc/passwd"),
    ],
    ids=str,
)
def test_the_caller_is_user_id_or_else_sub(given: dict[str, Any], user: str, coach: Influencer) -> None:
    response = opens_as(forge(claims(**given)), coach)

    assert response.status_code == 201, response.content
    assert response.json()["user_id"] == user
    assert Conversation.objects.get().user_id == user


@pytest.mark.parametrize(
    "user_id",
    [
        None,
        "",
        "   ",
        0,
        7,
        1.5,
        True,
        False,
        [],
        ["alice"],
        {},
        {"id": "alice"},
        "a\x00b",
        "a\nb",
        "a\x1bb",
        "a\x7fb",
        "a\x85b",
        "a\ud800b",
        "\udfff",
        "a" * 256,
    ],
    ids=repr,
)
def test_a_user_id_that_is_present_must_be_right_and_sub_does_not_stand_in(user_id: Any, coach: Influencer) -> None:
    response = opens_as(forge(claims(user_id=user_id, sub="alice")), coach)

    assert_refused(response, INVALID)
    assert not Conversation.objects.exists()


# Issuers and audiences


@pytest.mark.django_db
def test_each_issuer_of_the_list_is_believed_and_no_other(settings: Any) -> None:
    settings.JWT_ISSUER = ["https://one.example", "https://two.example"]

    assert_welcome(with_token(forge(claims(iss="https://one.example"))))
    assert_welcome(with_token(forge(claims(iss="https://two.example"))))
    for iss in (ISSUER, "https://one.example,https://two.example", ["https://one.example"], ABSENT):
        assert_refused(with_token(forge(claims(iss=iss))), WRONG_ISSUER)


@pytest.mark.django_db
def test_the_audience_is_checked_when_one_is_configured(settings: Any) -> None:
    settings.JWT_AUDIENCE = ["yral-chat", "yral-app"]

    good: tuple[Any, ...] = ("yral-chat", "yral-app", ["other", "yral-chat"])
    bad: tuple[Any, ...] = ("other", "", [], ["other"], None, 5, [5], {}, "yral", ABSENT)
    for aud in good:
        assert_welcome(with_token(forge(claims(aud=aud))))
    for aud in bad:
        assert_refused(with_token(forge(claims(aud=aud))), INVALID)


@pytest.mark.django_db
@pytest.mark.parametrize("aud", ["anything", ["a", "b"], None, 5])
def test_without_a_configured_audience_any_is_accepted(aud: Any) -> None:
    assert_welcome(with_token(forge(claims(aud=aud))))


# Two credentials don't add up


def test_an_admin_session_does_not_open_the_api(desk: Callable[[User], Client], superuser: User) -> None:
    admin = desk(superuser)

    assert admin.get("/admin/").status_code == 200
    assert_refused(admin.get(CHATS), MISSING)


@pytest.mark.parametrize("user", ["alice", "root", "1"])
def test_a_token_does_not_open_the_admin(user: str, superuser: User) -> None:
    headers = {"Authorization": f"Bearer {token(user)}"}

    for path in ("/admin/", "/admin/personas/influencer/", "/admin/conversations/message/"):
        response = Client().get(path, headers=headers)
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")


def test_an_admin_session_beside_a_token_changes_nothing(
    desk: Callable[[User], Client], superuser: User, conversation: Conversation
) -> None:
    headers = {"Authorization": f"Bearer {token('bob')}"}

    assert desk(superuser).get(f"{CHATS}/{conversation.pk}/messages", headers=headers).status_code == 403


# Public addresses


@pytest.mark.parametrize("path", ["/", "/health", "/status", "/docs", "/redoc", "/openapi.json", "/api/v1/influencers"])
@pytest.mark.parametrize("header", ["Bearer x.y.z", "Basic abc", "Bearer", "nonsense " * 20])
def test_a_public_address_does_not_look_at_the_token(path: str, header: str, db: None) -> None:
    assert Client().get(path, headers={"Authorization": header}).status_code == 200


def test_one_influencer_is_public_with_an_expired_token(coach: Influencer) -> None:
    headers = {"Authorization": f"Bearer {token(exp=1)}"}

    assert Client().get(f"/api/v1/influencers/{coach.pk}", headers=headers).status_code == 200


# Public keys


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()  # type: ignore[no-any-return]


def sign(key: Any, algorithm: str = "RS256", kid: str | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers={"kid": kid} if kid else None)


@pytest.mark.django_db
def test_an_rsa_public_key_verifies_and_nothing_else_passes(settings: Any, rsa_key: Any, ec_key: Any) -> None:
    settings.JWT_ALGORITHM, settings.JWT_PUBLIC_KEY = "RS256", pem(rsa_key)

    assert_welcome(with_token(sign(rsa_key)))
    assert_refused(with_token(sign(rsa_key, exp=1)), EXPIRED)
    assert_refused(with_token(sign(rsa_key, iss="https://evil.example")), WRONG_ISSUER)
    assert_refused(with_token(sign(rsa.generate_private_key(65537, 2048))), INVALID)
    assert_refused(with_token(sign(rsa_key, "RS512")), INVALID)
    assert_refused(with_token(sign(rsa_key, "PS256")), INVALID)
    assert_refused(with_token(sign(ec_key, "ES256")), INVALID)
    assert_refused(with_token(forge(claims())), INVALID)
    assert_refused(with_token(unsigned("none")), INVALID)


@pytest.mark.parametrize("trailing", ["", "\n"])
def test_the_public_key_is_no_shared_secret(settings: Any, rsa_key: Any, trailing: str) -> None:
    settings.JWT_ALGORITHM, settings.JWT_PUBLIC_KEY = "RS256", pem(rsa_key)
    key = pem(rsa_key).strip() + trailing

    assert_refused(with_token(forge(claims(), key=key)), INVALID)
    assert_refused(with_token(forge(claims(), header={"alg": "RS256"}, key=key)), INVALID)


@pytest.mark.django_db
def test_an_elliptic_public_key_verifies(settings: Any, ec_key: Any, rsa_key: Any) -> None:
    settings.JWT_ALGORITHM, settings.JWT_PUBLIC_KEY = "ES256", pem(ec_key)

    assert_welcome(with_token(sign(ec_key, "ES256")))
    assert_refused(with_token(sign(ec.generate_private_key(ec.SECP256R1()), "ES256")), INVALID)
    assert_refused(with_token(sign(rsa_key)), INVALID)
    assert_refused(with_token(forge(claims(), key=pem(ec_key))), INVALID)


# A key server


class KeyServer:
    """A real HTTP server with a JWKS on it; `fetches` counts, `status` and the rest spoil its answers."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.fetches, self.status, self.delay, self.raw, self.hang_up = 0, 200, 0.0, b"", False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def publish(self, **keys: Any) -> None:
        """The public halves of these, by kid."""
        self.keys = [
            {
                **json.loads(
                    (RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm).to_jwk(key.public_key())
                ),
                "kid": kid,
                "use": "sig",
            }
            for kid, key in keys.items()
        ]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        keys = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.fetches += 1
                time.sleep(keys.delay)
                if keys.hang_up:
                    self.connection.close()
                    return
                data = keys.raw or json.dumps({"keys": keys.keys}).encode()
                self.send_response(keys.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):  # the client, or we, hung up
                    super().finish()

        return Handler


@pytest.fixture
def key_server(settings: Any, rsa_key: Any) -> Iterator[KeyServer]:
    """It has the RSA key as `first`, and the service asks it."""
    server = KeyServer()
    server.publish(first=rsa_key)
    settings.JWT_ALGORITHM, settings.JWT_PUBLIC_KEY, settings.JWT_JWKS_URL = "RS256", "", server.url
    yield server
    server.stop()


@pytest.fixture(scope="module")
def second_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.django_db
def test_keys_come_from_the_key_server_once(key_server: KeyServer, rsa_key: Any) -> None:
    for _ in range(5):
        assert_welcome(with_token(sign(rsa_key, kid="first")))

    assert key_server.fetches == 1


@pytest.mark.django_db
def test_a_request_is_counted_without_asking_for_keys(key_server: KeyServer, rsa_key: Any, settings: Any) -> None:
    """By its address until its key is known: the public addresses answer also while the key server hangs."""
    signed = {"Authorization": f"Bearer {sign(rsa_key, kid='first', sub='who-is-counted')}"}

    assert Client().get("/api/v1/influencers", headers=signed).status_code == 200
    assert key_server.fetches == 0
    assert Client().get(CHATS, headers=signed).status_code == 200
    assert key_server.fetches == 1
    settings.RATE_LIMIT_PER_HOUR = 1
    assert Client().get(CHATS, headers=signed, REMOTE_ADDR="198.51.100.200").status_code == 200, "its account's first"
    assert Client().get(CHATS, headers=signed, REMOTE_ADDR="198.51.100.201").status_code == 429


@pytest.mark.django_db
def test_an_elliptic_key_of_a_key_server_works(key_server: KeyServer, ec_key: Any, settings: Any) -> None:
    settings.JWT_ALGORITHM = "ES256"
    key_server.publish(curve=ec_key)

    assert_welcome(with_token(sign(ec_key, "ES256", kid="curve")))


@pytest.mark.django_db
def test_a_key_that_rotates_right_after_the_first_fetch_is_fetched_at_once(
    key_server: KeyServer, rsa_key: Any, second_key: Any
) -> None:
    assert_welcome(with_token(sign(rsa_key, kid="first")))
    key_server.publish(second=second_key)

    assert_welcome(with_token(sign(second_key, kid="second")))
    assert key_server.fetches == 2
    assert_refused(with_token(sign(rsa_key, kid="first")), INVALID)


def test_an_unknown_key_id_is_refused(key_server: KeyServer, second_key: Any) -> None:
    assert_refused(with_token(sign(second_key, kid="unknown")), INVALID)


def test_a_known_key_id_with_another_key_is_refused(key_server: KeyServer, second_key: Any) -> None:
    assert_refused(with_token(sign(second_key, kid="first")), INVALID)


@pytest.mark.parametrize("kid", ["", "../../../dev/null", "first' OR '1'='1", "http://127.0.0.1/k", "\x00", "k" * 5000])
def test_tricks_with_the_key_id_are_refused(key_server: KeyServer, kid: str) -> None:
    assert_refused(with_token(forge(claims(), header={"alg": "RS256", "kid": kid}, key=b"")), INVALID)
    assert_refused(with_token(forge(claims(), header={"alg": "HS256", "kid": kid}, key=b"")), INVALID)


def test_a_token_without_a_key_id_is_refused(key_server: KeyServer, second_key: Any) -> None:
    assert_refused(with_token(sign(second_key)), INVALID)


def test_a_key_that_the_token_brings_along_is_not_used(key_server: KeyServer, second_key: Any) -> None:
    """`jwk`, `jku` and `x5u` in the header: nothing is read there, and nobody called."""
    evil = KeyServer()
    evil.publish(first=second_key, evil=second_key)
    try:
        for kid in ("first", "evil"):
            headers = {"kid": kid, "jku": evil.url, "x5u": evil.url, "jwk": evil.keys[0]}
            forged = jwt.encode(claims(), second_key, algorithm="RS256", headers=headers)
            assert_refused(with_token(forged), INVALID)
        assert evil.fetches == 0
    finally:
        evil.stop()


def test_the_published_key_is_no_shared_secret(key_server: KeyServer, rsa_key: Any) -> None:
    for key in (pem(rsa_key), json.dumps(key_server.keys[0])):
        assert_refused(with_token(forge(claims(), header={"alg": "HS256", "kid": "first"}, key=key)), INVALID)


@pytest.mark.django_db
@pytest.mark.parametrize("warm", [True, False], ids=["keys cached", "nothing cached"])
def test_a_flood_of_unknown_key_ids_is_no_flood_of_fetches(
    key_server: KeyServer, rsa_key: Any, second_key: Any, warm: bool
) -> None:
    if warm:
        assert_welcome(with_token(sign(rsa_key, kid="first")))
    for number in range(25):
        assert_refused(with_token(sign(second_key, kid=f"unknown-{number}")), INVALID)

    assert key_server.fetches <= 3
    assert_welcome(with_token(sign(rsa_key, kid="first")))


@pytest.mark.django_db
def test_a_flood_of_unknown_key_ids_spares_a_key_server_in_trouble(
    key_server: KeyServer, rsa_key: Any, second_key: Any
) -> None:
    assert_welcome(with_token(sign(rsa_key, kid="first")))
    key_server.status = 500
    for number in range(25):
        assert with_token(sign(second_key, kid=f"unknown-{number}")).status_code in (401, 503)

    assert key_server.fetches <= 3
    assert_welcome(with_token(sign(rsa_key, kid="first")))


@pytest.mark.django_db
def test_a_key_server_that_hangs_holds_up_nobody_whose_key_is_known(
    key_server: KeyServer, rsa_key: Any, second_key: Any
) -> None:
    assert_welcome(with_token(sign(rsa_key, kid="first")))
    key_server.delay = 2
    unknown = threading.Thread(target=with_token, args=[sign(second_key, kid="unknown")])
    unknown.start()
    time.sleep(0.2)
    started = time.monotonic()

    assert_welcome(with_token(sign(rsa_key, kid="first")))
    took = time.monotonic() - started
    unknown.join()
    assert took < 1


@pytest.mark.django_db
def test_cached_keys_outlive_a_key_server_that_went_down(key_server: KeyServer, rsa_key: Any) -> None:
    assert_welcome(with_token(sign(rsa_key, kid="first")))
    key_server.stop()

    assert_welcome(with_token(sign(rsa_key, kid="first")))


def assert_no_judgement(response: Any) -> None:
    assert response.status_code == 503, response.content
    body = response.json()
    assert set(body) == {"error", "message", "details"}
    assert "127.0.0.1" not in response.content.decode()
    assert int(response["Retry-After"]) > 0


def test_with_no_keys_and_the_key_server_down_nobody_is_told_to_log_in_again(
    key_server: KeyServer, rsa_key: Any
) -> None:
    key_server.stop()

    assert_no_judgement(with_token(sign(rsa_key, kid="first")))


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500},
        {"status": 404},
        {"status": 302},
        {"hang_up": True},
        {"raw": b"<html>Be right back</html>"},
        {"raw": b"[]"},
        {"raw": b"\xff\xfe"},
    ],
    ids=str,
)
@pytest.mark.django_db
def test_with_no_keys_and_the_key_server_in_trouble_nobody_is_told_to_log_in_again(
    key_server: KeyServer, rsa_key: Any, trouble: dict[str, Any]
) -> None:
    for name, value in trouble.items():
        setattr(key_server, name, value)

    assert_no_judgement(with_token(sign(rsa_key, kid="first")))

    key_server.status, key_server.hang_up, key_server.raw = 200, False, b""
    deadline = time.monotonic() + 3  # a short pause between two attempts is fine; clients are told Retry-After
    while (response := with_token(sign(rsa_key, kid="first"))).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_welcome(response)


def test_a_bad_header_needs_no_key_server(key_server: KeyServer) -> None:
    key_server.stop()

    assert_refused(listing(None), MISSING)
    assert_refused(listing("Bearer"), WRONG_FORMAT)
    assert_refused(with_token("not.a.token"), INVALID)

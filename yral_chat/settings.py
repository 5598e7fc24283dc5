"""The one settings file. Environments differ by variables (README lists them), never by modules.

Everything is read once, here. A value that can't be used stops the process with one sentence.
"""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import environ
from django.utils.csp import CSP
from dotenv.parser import parse_stream

from yral_chat import RUNNING, __version__, secret_keys
from yral_chat.postgresql import Connection, still_open

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.FileAwareEnv()


def stop(sentence: str) -> NoReturn:
    raise SystemExit(f"Yral AI Chat can't start: {sentence}")


VARIABLES: dict[str, None] = {}  # the names that are read, in order, for `manage.py doctor`


def text(name: str, default: str = "", *, blank: str | None = None) -> str:
    """The variable, or the file that NAME_FILE points to. Blank counts as unset, unless `blank` says what it means."""
    VARIABLES[name] = None
    try:
        value = env.ENVIRON.get(name)
    except (OSError, UnicodeDecodeError) as exc:
        stop(f"{name}_FILE can't be read ({type(exc).__name__}).")
    if value is None:
        return default
    if re.search("[\ud800-\udfff]", str(value)):  # how Python shows bytes that are no text
        stop(f"{name} isn't UTF-8.")
    return str(value).strip() or (default if blank is None else blank)


def read_variables(path: str) -> None:
    """Those that the environment doesn't have. A line that can't be read may be the one that keeps strangers out."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            for line in parse_stream(file):
                if line.error or (line.key and line.value is None):
                    skipped = line.original.string.partition(line.original.string.strip())[0].count("\n")
                    stop(f"line {line.original.line + skipped} of {path} is neither NAME=VALUE nor a comment.")
                if line.key:
                    os.environ.setdefault(line.key, line.value or "")
    except (OSError, ValueError) as exc:
        stop(f"ENV_FILE ({path}) can't be read ({type(exc).__name__}).")


_env_file = BASE_DIR / ".env"
ENV_FILE = text("ENV_FILE", str(_env_file) if _env_file.exists() else "", blank="")
if ENV_FILE:
    read_variables(ENV_FILE)


def choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = text(name, default)
    if value not in choices:
        stop(f"{name} must be one of {', '.join(choices)}.")
    return value


def flag(name: str, default: bool) -> bool:
    value = text(name, str(default)).lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    stop(f"{name} must be true or false.")


def number[N: (int, float)](
    name: str, default: N, kind: Callable[[str], N], *, least: float, most: float = float("inf")
) -> N:
    raw = text(name)
    if not raw:
        return default
    try:
        value = kind(raw)
    except ValueError:
        stop(f"{name} must be a number.")
    if not least <= value <= most:
        stop(f"{name} must be between {least:.10g} and {most:.10g}.")
    return value


def words(name: str, default: str = "") -> list[str]:
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def networks(name: str, also: tuple[str, ...] = ()) -> list[str]:
    """Addresses and CIDR networks, with commas, or one of the words that `also` names."""
    found = words(name)
    try:
        for network in set(found) - set(also):
            ip_network(network, strict=False)
    except ValueError:
        stop(f"{name} must list addresses or networks such as 10.0.0.0/8{''.join(f', or {word}' for word in also)}.")
    return found


def secret(name: str, development_default: str, made: Callable[[], str] | None = None) -> str:
    """At least 32 bytes that nobody guesses. Outside development it must be set, or `made` makes one."""
    value = text(name)
    if DEVELOPMENT:
        return value or development_default
    if not value and made and f"{name}_FILE" not in env.ENVIRON:
        return made()
    if not value:
        stop(f"{name} is missing. Set it to a secret of at least 32 bytes (openssl rand -hex 32).")
    if len(value.encode()) < secret_keys.LEAST_BYTES:
        stop(f"{name} is shorter than 32 bytes. Make one with: openssl rand -hex 32")
    if value == development_default or secret_keys.is_weak(value):
        stop(f"{name} can be guessed. Make a random one with: openssl rand -hex 32")
    return value


def is_host(host: str) -> bool:
    """A name, an IPv4 address, or an IPv6 address without brackets."""
    try:
        if ":" in host:
            return not IPv6Address(host).scope_id
        if re.fullmatch(r"[0-9.]+", host):
            return bool(IPv4Address(host))
    except ValueError:
        return False
    return len(host) < 254 and bool(re.fullmatch(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", host))


def host_of(address: str) -> str:
    """As in a Host header, without the port; empty if the address can't be one."""
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "") if parts.port != 0 else ""
    except ValueError:
        return ""
    if not is_host(host):
        return ""
    return f"[{host}]" if ":" in host else host


def address(name: str, default: str = "", *, query: bool = False) -> str:
    """Of http or https; with nothing in it that could end a header's value or a directive of a policy."""
    value = text(name, default)
    forbidden = r"[^!-~]|[\"'<>\\,;#]" if query else r"[^!-~]|[\"'<>\\,;#?]"
    if value and (not re.match("https?://", value) or re.search(forbidden, value) or not host_of(value)):
        stop(f"{name} must be an https:// (or http://) address{'' if query else ' without a query'}.")
    return value


def origins(name: str) -> list[str]:
    """As browsers write them: scheme, host, and a port that isn't the usual one."""
    found = [origin.lower().rstrip("/") for origin in words(name)]
    for origin in found:
        if origin != "*" and not (re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+", origin) and host_of(origin)):
            stop(f"{name} must list origins such as https://app.example, or be *.")
    return found


def hosts(name: str) -> list[str]:
    """As in a Host header, without a port; with a dot before them also those below; * is any."""
    found = words(name)
    for host in found:
        if host != "*" and host_of(f"//{host.removeprefix('.')}") != host.removeprefix(".").lower():
            stop(f"{name} must list host names such as chat.example, without https:// and port.")
    return found


MOST = 1_000_000_000  # of what is counted
OWN_PATHS = (
    *(
        "api",
        "browse",
        "docs",
        "health",
        "media",
        "metrics",
        "openapi.json",
        "openapi.yaml",
        "redoc",
        "static",
        "status",
        "try",
    ),
)

# What this process is
ENVIRONMENT = choice("ENVIRONMENT", "development", ("development", "staging", "production"))
PRODUCTION = ENVIRONMENT == "production"
DEVELOPMENT = ENVIRONMENT == "development"
DEBUG = flag("DEBUG", default=False)
ENABLE_TRY_PAGE = flag("ENABLE_TRY_PAGE", default=not PRODUCTION)
APP_NAME = text("APP_NAME", "Yral AI Chat API")
APP_VERSION = text("APP_VERSION", RUNNING)
HOST = text("HOST", "127.0.0.1" if DEVELOPMENT else "0.0.0.0")  # noqa: S104  a container serves all its interfaces
if not is_host(HOST.lower()):
    stop("HOST must be an address of this machine, such as 127.0.0.1, or a host name.")
PORT = number("PORT", 8000, int, least=1, most=65535)
WEB_CONCURRENCY = number("WEB_CONCURRENCY", 1 if DEVELOPMENT else 2, int, least=1, most=256)
WEB_THREADS = number("WEB_THREADS", 256, int, least=1, most=4096)
WEB_MAX_REQUESTS = number("WEB_MAX_REQUESTS", 50_000, int, least=0, most=MOST)

# What operators see of it
LOG_LEVEL = choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
LOG_FORMAT = choice("LOG_FORMAT", "text" if DEVELOPMENT else "json", ("json", "text"))
LOG_FILE = text("LOG_FILE", "logs/yral_ai_chat.log", blank="")
LOG_FILE_MAX_MB = number("LOG_FILE_MAX_MB", 50.0, float, least=0.01, most=10_000)
LOG_FILE_BACKUPS = number("LOG_FILE_BACKUPS", 5, int, least=1, most=1000)
METRICS_ENABLED = flag("METRICS_ENABLED", default=True)
METRICS_TOKEN = text("METRICS_TOKEN")
if not (METRICS_TOKEN.isascii() and METRICS_TOKEN.isprintable()):
    stop("METRICS_TOKEN holds characters that no header has. Make one with: openssl rand -hex 32")
if METRICS_TOKEN and len(METRICS_TOKEN) < 16:
    stop("METRICS_TOKEN is shorter than 16 characters. Make one with: openssl rand -hex 32")
REPLICA_PATH = text("REPLICA_PATH")
SENTRY_DSN = text("SENTRY_DSN")
if SENTRY_DSN:
    from sentry_sdk.utils import Dsn

    try:
        Dsn(SENTRY_DSN)
    except ValueError:
        stop("SENTRY_DSN must be the https:// address that Sentry shows for the project.")

if PRODUCTION and DEBUG:
    stop("DEBUG is on in production. Unset it: it shows internals to users.")

# The path under which a proxy shows this service; requests may still carry it, or not (requests.py)
SCRIPT_NAME = text("SCRIPT_NAME").rstrip("/")
FORCE_SCRIPT_NAME = SCRIPT_NAME or None
if not re.fullmatch(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)*", SCRIPT_NAME):
    stop("SCRIPT_NAME must be a path such as /staging.")
if SCRIPT_NAME.partition("/")[2].partition("/")[0] in OWN_PATHS:
    stop(f"SCRIPT_NAME must not begin with a path of the service itself ({', '.join(OWN_PATHS)}).")

# The admin: its address, who may come to it, and how often a password may be wrong
ADMIN_PATH = text("ADMIN_PATH", "admin/").strip("/") + "/"
if not re.fullmatch(r"([A-Za-z0-9_-]+/)+", ADMIN_PATH) or ADMIN_PATH.partition("/")[0] in OWN_PATHS:
    stop("ADMIN_PATH must be a path such as staff-7f3a/, and none of the service's other addresses.")
if f"{SCRIPT_NAME}/"[1:].partition("/")[0] == ADMIN_PATH.partition("/")[0]:
    stop("SCRIPT_NAME must not begin as ADMIN_PATH does: the proxy may take it off or leave it.")
ADMIN_ALLOWED_NETWORKS = networks("ADMIN_ALLOWED_NETWORKS")
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
ADMIN_LOGINS_PER_MINUTE = 10  # of a network, right or wrong; 0: no limit
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]  # a stranger can't lock out a colleague elsewhere
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "yral_chat.admin_access.locked_out"
AXES_CLIENT_IP_CALLABLE = "yral_chat.admin_access.client_network"
AXES_USERNAME_CALLABLE = "yral_chat.admin_access.name_tried"
AXES_VERBOSE = False
AXES_ENABLE_ADMIN = False  # yral_chat/admin.py shows its tables

# Proxies whose forwarding headers are believed (proxies.py)
TRUSTED_PROXIES = networks("TRUSTED_PROXIES", also=("unix",))
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Who may call: tokens of another service, verified here
JWT_ALGORITHM = choice(
    "JWT_ALGORITHM",
    "HS256",
    ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"),
)
JWT_PUBLIC_KEY = text("JWT_PUBLIC_KEY").replace("\\n", "\n")
JWT_JWKS_URL = address("JWT_JWKS_URL", query=True)
JWT_ISSUER = words("JWT_ISSUER", "https://auth.yral.com")
JWT_AUDIENCE = words("JWT_AUDIENCE")
JWT_LEEWAY = number("JWT_LEEWAY", 30, int, least=0, most=3600)
if JWT_ALGORITHM.startswith("HS"):
    JWT_SECRET_KEY = secret("JWT_SECRET_KEY", "development-only-jwt-secret-never-used-in-production")
else:
    JWT_SECRET_KEY = ""
    if not (JWT_PUBLIC_KEY or JWT_JWKS_URL):
        stop(f"JWT_ALGORITHM={JWT_ALGORITHM} needs JWT_PUBLIC_KEY (a PEM) or JWT_JWKS_URL.")
if not JWT_ISSUER:
    stop("JWT_ISSUER names no issuer.")
if JWT_JWKS_URL and JWT_ALGORITHM.startswith("HS"):
    stop(f"JWT_JWKS_URL publishes public keys, and JWT_ALGORITHM={JWT_ALGORITHM} takes none: use RS256 or ES256.")

# The model
GEMINI_API_KEY = text("GEMINI_API_KEY")
if PRODUCTION and not GEMINI_API_KEY:
    stop("GEMINI_API_KEY is missing. Without a key only development answers, by its offline engine.")
GEMINI_BASE_URL = address("GEMINI_BASE_URL")
if not (GEMINI_API_KEY.isascii() and GEMINI_API_KEY.isprintable()):
    stop("GEMINI_API_KEY holds characters that no key has.")
GEMINI_MODEL = text("GEMINI_MODEL", "gemini-2.5-flash")
GEMINI_MAX_TOKENS = number("GEMINI_MAX_TOKENS", 2048, int, least=1, most=65536)
GEMINI_TEMPERATURE = number("GEMINI_TEMPERATURE", 0.7, float, least=0, most=2)
GEMINI_THINKING_BUDGET = (
    number("GEMINI_THINKING_BUDGET", 0, int, least=-1, most=32768) if text("GEMINI_THINKING_BUDGET") else None
)
GEMINI_FALLBACK_MODEL = text("GEMINI_FALLBACK_MODEL")
GEMINI_TIMEOUT_SECONDS = number("GEMINI_TIMEOUT_SECONDS", 25.0, float, least=0.1, most=300)
STREAM_GAP_SECONDS = number("STREAM_GAP_SECONDS", 15.0, float, least=0.1, most=300)
STREAM_TIMEOUT_SECONDS = number("STREAM_TIMEOUT_SECONDS", 120.0, float, least=0.1, most=3600)
GRACEFUL_TIMEOUT = number("GRACEFUL_TIMEOUT", int(STREAM_TIMEOUT_SECONDS) + 5, int, least=1, most=3600)

GEMINI_TRANSCRIPTION_MODEL = text("GEMINI_TRANSCRIPTION_MODEL", GEMINI_MODEL)
USE_WHISPER = flag("USE_WHISPER", default=False)
WHISPER_API_KEY = text("WHISPER_API_KEY")
WHISPER_BASE_URL = address("WHISPER_BASE_URL", "https://api.openai.com/v1").rstrip("/")
WHISPER_MODEL = text("WHISPER_MODEL", "whisper-1")
if USE_WHISPER and not WHISPER_API_KEY and WHISPER_BASE_URL.startswith("https://api.openai.com/"):
    stop("USE_WHISPER=true needs WHISPER_API_KEY, or WHISPER_BASE_URL of a server that asks for none.")

# Pictures and sounds: in a folder, or in an S3-compatible bucket
MAX_IMAGE_SIZE_MB = number("MAX_IMAGE_SIZE_MB", 10, int, least=1, most=100)
MAX_AUDIO_SIZE_MB = number("MAX_AUDIO_SIZE_MB", 20, int, least=1, most=100)
MAX_AUDIO_DURATION_SECONDS = number("MAX_AUDIO_DURATION_SECONDS", 300, int, least=1, most=300)
CONTEXT_IMAGES = number("CONTEXT_IMAGES", 3, int, least=0, most=10)
PICTURE_CACHE_MB = number("PICTURE_CACHE_MB", 32.0, float, least=0, most=4096)
ALLOW_EXTERNAL_MEDIA = flag("ALLOW_EXTERNAL_MEDIA", default=False)
MEDIA_UPLOAD_DIR = BASE_DIR / text("MEDIA_UPLOAD_DIR", "uploads")
MEDIA_BASE_URL = address("MEDIA_BASE_URL").rstrip("/")
MEDIA_X_ACCEL_PREFIX = text("MEDIA_X_ACCEL_PREFIX").rstrip("/")
USE_S3 = flag("USE_S3", default=False)
AWS_ACCESS_KEY_ID = text("AWS_ACCESS_KEY_ID")
AWS_SECRET_ACCESS_KEY = text("AWS_SECRET_ACCESS_KEY")
AWS_S3_BUCKET = text("AWS_S3_BUCKET")
AWS_REGION = text("AWS_REGION", "us-east-1")
S3_ENDPOINT = address("S3_ENDPOINT")
S3_ENDPOINT_URL = address("S3_ENDPOINT_URL", S3_ENDPOINT).rstrip("/")
S3_PUBLIC_URL_BASE = address("S3_PUBLIC_URL_BASE").rstrip("/")
S3_ADDRESSING_STYLE = choice("S3_ADDRESSING_STYLE", "auto", ("auto", "path", "virtual"))
S3_URL_EXPIRES_SECONDS = number("S3_URL_EXPIRES_SECONDS", 900, int, least=3, most=604800)
if USE_S3 and not (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and AWS_S3_BUCKET):
    stop("USE_S3=true needs AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_S3_BUCKET.")
if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}", AWS_REGION):
    stop("AWS_REGION must be a region's name such as us-east-1.")
if not re.fullmatch(r"[A-Za-z0-9._-]{0,255}", AWS_S3_BUCKET):
    stop("AWS_S3_BUCKET must be a bucket's name.")
FILE_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
FILE_UPLOAD_HANDLERS = [
    "django.core.files.uploadhandler.MemoryFileUploadHandler",
    "django.core.files.uploadhandler.TemporaryFileUploadHandler",
]
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 10
UPLOAD_MAX_BODY_SIZE = max(MAX_IMAGE_SIZE_MB, MAX_AUDIO_SIZE_MB) * 1024 * 1024 + 64 * 1024

# SQLite's copy in a bucket, kept by Litestream (replication.py)
ENABLE_LITESTREAM = flag("ENABLE_LITESTREAM", default=False)
LITESTREAM_BUCKET = text("LITESTREAM_BUCKET")
LITESTREAM_PATH = text("LITESTREAM_PATH", "yral_chat").strip("/")
LITESTREAM_ENDPOINT = address("LITESTREAM_ENDPOINT").rstrip("/")
LITESTREAM_REGION = text("LITESTREAM_REGION", "us-east-1")
LITESTREAM_ACCESS_KEY_ID = text("LITESTREAM_ACCESS_KEY_ID")
LITESTREAM_SECRET_ACCESS_KEY = text("LITESTREAM_SECRET_ACCESS_KEY")
LITESTREAM_SYNC_SECONDS = number("LITESTREAM_SYNC_SECONDS", 1.0, float, least=0.1, most=3600)
LITESTREAM_RETENTION_HOURS = number("LITESTREAM_RETENTION_HOURS", 168, int, least=1, most=24 * 366)
LITESTREAM_WAL_LIMIT_MB = number("LITESTREAM_WAL_LIMIT_MB", 1024, int, least=1)
if ENABLE_LITESTREAM and not (LITESTREAM_BUCKET and LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY):
    stop("ENABLE_LITESTREAM=true needs LITESTREAM_BUCKET, LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY.")
if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", LITESTREAM_PATH):
    stop("LITESTREAM_PATH must name a folder of the bucket such as chat/production, by letters, digits, '-', '_', '.'.")
if not re.fullmatch(r"[A-Za-z0-9._-]{0,255}", LITESTREAM_BUCKET):
    stop("LITESTREAM_BUCKET must be a bucket's name.")

# Database: SQLite embedded, or PostgreSQL
DATABASE_PATH = text("DATABASE_PATH", "data/yral_chat.db")
DATABASE_URL = text("DATABASE_URL", f"sqlite:///{quote(DATABASE_PATH)}")
DATABASE_POOL_SIZE = number("DATABASE_POOL_SIZE", 10, int, least=1, most=1000)


def sqlite(database: dict[str, Any], name: str) -> dict[str, Any]:
    """WAL and IMMEDIATE: writers queue for `timeout` seconds instead of failing; readers never wait.

    A page cache of 256 KiB a connection: hundreds of threads hold one each. No mmap. With Litestream nobody else moves
    the WAL into the database (see database.py for the other half of that).
    """
    no_checkpoints = "PRAGMA wal_autocheckpoint=0;" if ENABLE_LITESTREAM else ""
    path = BASE_DIR / database["NAME"]
    if path.is_dir() or path.name == ":memory:":
        stop(f"{name} must name a file for SQLite, such as sqlite:///data/chat.db.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        stop(f"the folder of {name} can't be made ({exc.strerror}).")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-256;"
            + no_checkpoints,
        },
        "TEST": {"NAME": path.with_name("test.sqlite3")},
    }


def postgresql(database: dict[str, Any], name: str) -> dict[str, Any]:
    """Connections come from a pool of the process and are back in it while the model thinks.

    A network that is gone is noticed within seconds, and a server that is back as soon. DATABASE_URL may say otherwise
    (?connect_timeout=10).
    """
    limits = {
        "connect_timeout": 5,
        "tcp_user_timeout": 5000,  # ms
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
    }
    pool = {
        "connection_class": Connection,
        "min_size": 1,
        "max_size": DATABASE_POOL_SIZE,
        "check": still_open,
        "timeout": 10,  # seconds that a request waits, for others or for the server
        "max_idle": 120,
        "reconnect_timeout": 10,  # then who needs a connection tries anew; the pool's own pauses grow to minutes
    }
    return {**database, "CONN_MAX_AGE": 0, "OPTIONS": {**limits, **database.get("OPTIONS", {}), "pool": pool}}


def database(url: str, name: str) -> dict[str, Any]:
    """Django's configuration of it; `name` is what the reader knows the address by."""
    looks = f"{name} must look like sqlite:///data/chat.db or postgres://user:password@host:5432/name."
    if not url.startswith(("sqlite:///", "postgres://", "postgresql://")):
        stop(looks)
    try:
        parsed = env.db_url_config(url)
    except Exception as exc:  # whatever the parser trips over, the reader needs the variable's name
        stop(f"{name} can't be read ({type(exc).__name__}).")
    kinds = {"django.db.backends.sqlite3": sqlite, "django.db.backends.postgresql": postgresql}
    if parsed.get("ENGINE") not in kinds or not parsed.get("NAME"):
        stop(looks)
    return kinds[parsed["ENGINE"]](parsed, name)


DATABASES = {"default": database(DATABASE_URL, "DATABASE_URL")}
_on_sqlite = DATABASES["default"]["ENGINE"].endswith("sqlite3")
if ENABLE_LITESTREAM and not _on_sqlite:
    stop("ENABLE_LITESTREAM=true is for SQLite, and DATABASE_URL names PostgreSQL: unset one of them.")

# What processes share for a moment: in each one's memory, or in Redis or Valkey
CACHE_URL = text("CACHE_URL")


def is_redis(address: str, options: dict[str, Any]) -> bool:
    """Makes a connection's object as requests do, and doesn't connect."""
    from redis import ConnectionPool

    try:
        ConnectionPool.from_url(address, **options).make_connection()
    except Exception:  # whatever the driver trips over
        return False
    path = urlsplit(address).path
    return bool(path if address.startswith("unix:") else re.fullmatch(r"(/\d*)?", path) and host_of(address))


def cache() -> dict[str, Any]:
    if not CACHE_URL:
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    address = CACHE_URL.replace("valkeys://", "rediss://").replace("valkey://", "redis://")
    if not address.startswith(("redis://", "rediss://", "unix://")):
        stop("CACHE_URL must look like redis://:password@host:6379/0 (or rediss://, valkey://, unix://).")
    options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    if not is_redis(address, options):
        stop("CACHE_URL can't be read. In a password, / ? # @ and % are written %2F %3F %23 %40 and %25.")
    return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": address, "OPTIONS": options}


CACHES = {"default": {**cache(), "KEY_PREFIX": "yral_chat"}}

# Who may ask, from where. Two variables start production: these have defaults.
CORS_ORIGINS = origins("CORS_ORIGINS")
CORS_ALLOW_CREDENTIALS = flag("CORS_ALLOW_CREDENTIALS", default=False)
if "*" in CORS_ORIGINS and CORS_ALLOW_CREDENTIALS:
    stop("CORS_ORIGINS=* with CORS_ALLOW_CREDENTIALS=true lets any site act for its visitors. Name the origins.")
CORS_ALLOW_ALL_ORIGINS = "*" in CORS_ORIGINS
CORS_ALLOWED_ORIGINS = [origin for origin in CORS_ORIGINS if origin != "*"]
CORS_ALLOWED_ORIGIN_REGEXES = (
    [r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?\Z"] if DEVELOPMENT and not CORS_ORIGINS else []
)
CORS_URLS_REGEX = r"/(api/.*|health|status|openapi\.json|openapi\.yaml)?\Z"  # never the admin or the files of users
CORS_ALLOW_METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "POST"]
CORS_ALLOW_HEADERS = [
    *("authorization", "content-type", "idempotency-key", "last-event-id", "x-correlation-id", "x-chat-scenario"),
]
CORS_EXPOSE_HEADERS = [
    *("X-Correlation-ID", "X-API-Version", "X-Message-ID", "Retry-After"),
    *("X-RateLimit-Limit-Minute", "X-RateLimit-Limit-Hour"),
    *("X-RateLimit-Remaining-Minute", "X-RateLimit-Remaining-Hour"),
]
ALLOWED_HOSTS = hosts("ALLOWED_HOSTS")
if not ALLOWED_HOSTS:
    _hosts = [host_of(address) for address in (MEDIA_BASE_URL, *CORS_ORIGINS)]
    _local = ["localhost", "127.0.0.1", "[::1]"]
    ALLOWED_HOSTS = ["*"] if DEVELOPMENT else sorted({host for host in _hosts if host} - set(_local)) + _local


def beside_the_database(name: str) -> Path:
    """Beside the SQLite file; with PostgreSQL in the folder where that file would be."""
    return Path(DATABASES["default"]["NAME"] if _on_sqlite else BASE_DIR / DATABASE_PATH).with_name(name)


def kept_secret_key() -> str:
    path = beside_the_database("secret-key")
    try:
        return secret_keys.kept(path)
    except OSError as exc:
        stop(f"SECRET_KEY isn't set, and none can be kept in {path} ({exc.strerror}).")
    except ValueError:
        stop(f"SECRET_KEY isn't set, and {path} holds none. Remove that file: a new one ends all sessions and links.")


SECRET_KEY_IS_KEPT = not DEVELOPMENT and not text("SECRET_KEY")
SECRET_KEY = secret("SECRET_KEY", "development-only-secret-key-never-used-in-production", kept_secret_key)

# The file for dashboards, in a folder of its own, which Metabase may see; and the key by which its users are made
# unrecognisable: none is made before the first export
ANALYTICS_PATH = BASE_DIR / text("ANALYTICS_PATH", str(beside_the_database("analytics") / "analytics.db"))
ANALYTICS_HASH_KEY = secret("ANALYTICS_HASH_KEY", "", str)
ANALYTICS_KEPT_KEY = beside_the_database("analytics-key")
if _on_sqlite and DATABASES["default"]["NAME"].resolve() == ANALYTICS_PATH.resolve():
    stop("ANALYTICS_PATH must be a file of its own, not the database's.")

# How often somebody may call; 0 switches a limit off. Counted in Redis, else in a file that holds nothing else.
RATE_LIMIT_PER_MINUTE = number("RATE_LIMIT_PER_MINUTE", 300, int, least=0, most=MOST)
RATE_LIMIT_PER_HOUR = number("RATE_LIMIT_PER_HOUR", 5000, int, least=0, most=MOST)
_a_fifth = -(-RATE_LIMIT_PER_MINUTE // 5)
RATE_LIMIT_MODEL_PER_MINUTE = number("RATE_LIMIT_MODEL_PER_MINUTE", _a_fifth, int, least=0, most=MOST)
RATE_LIMIT_UPLOAD_PER_MINUTE = number("RATE_LIMIT_UPLOAD_PER_MINUTE", _a_fifth, int, least=0, most=MOST)
DESK_CALLS_PER_MINUTE = number("DESK_CALLS_PER_MINUTE", 60, int, least=0, most=MOST)
_database_folder = Path(DATABASES["default"]["NAME"]).parent if _on_sqlite else "data"
RATE_LIMIT_DATABASE = BASE_DIR / text("RATE_LIMIT_DATABASE", str(BASE_DIR / _database_folder / "rate_limits.db"))
if _on_sqlite and DATABASES["default"]["NAME"].resolve() == RATE_LIMIT_DATABASE.resolve():
    stop("RATE_LIMIT_DATABASE must be a file of its own, not the database's.")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Django
INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",
    "yral_chat.apps.DeskConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "axes",
    "corsheaders",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "yral_chat",
    "personas",
    "media_uploads",
    "conversations",
]
MIDDLEWARE = [
    "yral_chat.proxies.ProxyMiddleware",
    "yral_chat.middleware.CorrelationMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "yral_chat.throttling.RateLimitMiddleware",
    "yral_chat.middleware.BodyLimitMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "yral_chat.admin_access.AdminAccessMiddleware",
    "axes.middleware.AxesMiddleware",
]
CSRF_FAILURE_VIEW = "yral_chat.errors.csrf_failure"
ROOT_URLCONF = "yral_chat.urls"
WSGI_APPLICATION = "yral_chat.wsgi.application"
ASGI_APPLICATION = "yral_chat.asgi.application"
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.csp",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FIXTURE_DIRS = [BASE_DIR / "fixtures"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEVELOPMENT
SECURE_HSTS_SECONDS = HSTS_SECONDS = number("HSTS_SECONDS", 31_536_000 if PRODUCTION else 0, int, least=0, most=MOST)
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # other services may live below this one's name
    "security.W008",  # nginx redirects to https; a POST of the API is never answered with a redirect
    "security.W021",  # as W005
]
# No page loads anything of other hosts, is shown in a frame, or runs a script that stands in it without a nonce.
SECURE_CSP: dict[str, list[str]] = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF, CSP.NONCE],
    "style-src": [CSP.SELF, CSP.NONCE],
    "img-src": [CSP.SELF, "data:"],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
    "base-uri": [CSP.NONE],
}
REDOC_CSP: dict[str, list[str]] = {
    **SECURE_CSP,
    "style-src": [CSP.SELF, CSP.UNSAFE_INLINE],
    "worker-src": ["blob:"],
}  # it writes its own
# Where links to files lead: a bucket is a path of its store, or a host below it, as S3_ADDRESSING_STYLE and boto3 will.
_stores = [S3_ENDPOINT_URL] if S3_ENDPOINT_URL else [f"https://s3.{one}amazonaws.com" for one in ("", f"{AWS_REGION}.")]
_origins_of_media = [f"{url.scheme}://{url.netloc}" for url in [urlsplit(MEDIA_BASE_URL)] if url.netloc]
for _store in map(urlsplit, _stores if USE_S3 else ()):
    _origins_of_media += [f"{_store.scheme}://{bucket}{_store.netloc}" for bucket in ("", f"{AWS_S3_BUCKET}.")]
_hosts_of_media = ["https:", *(origin for origin in _origins_of_media if origin.startswith("http:"))]
ADMIN_CSP = {
    **SECURE_CSP,
    "script-src": [*SECURE_CSP["script-src"], CSP.UNSAFE_EVAL],  # the theme's pages hold expressions of Alpine
    "img-src": [CSP.SELF, "data:", *_hosts_of_media],
    "media-src": [CSP.SELF, *_hosts_of_media],
    "frame-src": [CSP.SELF],
}
TRY_CSP: dict[str, list[str]] = {
    **SECURE_CSP,
    "img-src": [CSP.SELF, "data:", "blob:", *_origins_of_media],
    "media-src": [CSP.SELF, "blob:", *_origins_of_media],
}
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{SCRIPT_NAME}/"
# Names of its own: a browser sends the cookies of / to /staging as well, and those of one port to another.
_whose = f"{ENVIRONMENT}{SCRIPT_NAME}".replace("/", "_")
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = f"sessionid_{_whose}", f"csrftoken_{_whose}"

STATIC_URL = f"{SCRIPT_NAME}/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "media": {"BACKEND": f"media_uploads.storage.{'S3Media' if USE_S3 else 'LocalMedia'}"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = DEVELOPMENT
WHITENOISE_MAX_AGE = 0 if DEVELOPMENT else 3600


def _never_old_code(headers: Any, path: str, url: str) -> None:
    """Pictures are kept for an hour. A release's scripts belong together, and modules import each other by their plain
    names: a browser asks whether each is still what it has (304). Its tag is weak, as nginx makes it by packing."""
    if url.endswith((".js", ".css")):
        file = Path(path).stat()
        headers["Cache-Control"], headers["ETag"] = "no-cache", f'W/"{int(file.st_mtime):x}-{file.st_size:x}"'


WHITENOISE_ADD_HEADERS_FUNCTION = _never_old_code

# The admin's theme
_PERSONA = "personas/influencer/<path:influencer_id>"
UNFOLD = {
    "SITE_TITLE": "Yral AI Chat",
    "SITE_HEADER": "Yral AI Chat",
    "SITE_SUBHEADER": "The content desk",
    "SITE_URL": f"{SCRIPT_NAME}/docs",
    "SITE_ICON": "yral_chat.desk.icon",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "yral_chat.desk.icon"}],
    "STYLES": ["yral_chat.desk.style"],
    "SCRIPTS": ["yral_chat.desk.script"],
    "ENVIRONMENT": "yral_chat.desk.environment",
    "DASHBOARD_CALLBACK": "yral_chat.desk.home",
    "SHOW_BACK_BUTTON": True,
    "SHOW_VIEW_ON_SITE": False,
    "SITE_VIEWS": [
        ("statistics/", "statistics", "conversations.dashboard.StatisticsPage"),
        (f"{_PERSONA}/preview/", "persona_preview", "conversations.preview.PreviewPage"),
        (f"{_PERSONA}/playground/", "persona_playground", "conversations.playground.PlaygroundPage"),
        (f"{_PERSONA}/playground/say/", "persona_playground_say", "conversations.playground.Say"),
        (f"{_PERSONA}/playground/picture/", "persona_playground_picture", "conversations.playground.Picture"),
        (f"{_PERSONA}/playground/listen/", "persona_playground_listen", "conversations.playground.Listen"),
        (f"{_PERSONA}/tests/", "persona_tests", "conversations.sample_pages.TestsPage"),
        (f"{_PERSONA}/tests/add/", "persona_tests_add", "conversations.sample_pages.SamplePage"),
        (f"{_PERSONA}/tests/<int:sample_id>/", "persona_tests_sample", "conversations.sample_pages.SamplePage"),
        (f"{_PERSONA}/tests/run/", "persona_tests_run", "conversations.sample_pages.StartRun"),
        (f"{_PERSONA}/tests/runs/<int:run_id>/", "persona_tests_result", "conversations.sample_pages.RunPage"),
        (f"{_PERSONA}/tests/runs/<int:run_id>/next/", "persona_tests_next", "conversations.sample_pages.NextStep"),
    ],
    "SIDEBAR": {"navigation": "yral_chat.desk.navigation"},
}

# The API
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "yral_chat.browsable.BrowsableAuthentication"
        if DEVELOPMENT
        else "yral_chat.authentication.BearerAuthentication"
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["yral_chat.json.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": [
        "yral_chat.json.FastJSONRenderer",
        *(["yral_chat.browsable.BrowsableRenderer"] if DEVELOPMENT else []),
    ],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "yral_chat.json.LenientNegotiation",
    "DEFAULT_SCHEMA_CLASS": "yral_chat.schema.Schema",
    "DEFAULT_METADATA_CLASS": None,
    "EXCEPTION_HANDLER": "yral_chat.errors.handle",
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
    "URL_FORMAT_OVERRIDE": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SIMPLE_JWT = {"JTI_CLAIM": None, "TOKEN_TYPE_CLAIM": None}
SPECTACULAR_SETTINGS = {
    "TITLE": "Yral AI Chat API",
    "VERSION": __version__,
    "DESCRIPTION": "Users talk with AI influencer personas. One error shape, bearer tokens, paths without a slash.",
    "OAS_VERSION": "3.1.1",
    "SERVERS": [{"url": SCRIPT_NAME}] if SCRIPT_NAME else [],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": [],
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,  # it would list "audio: Audio"
    "ENUM_NAME_OVERRIDES": {
        "InfluencerStatus": "personas.serializers.SHOWN_STATUSES",
        "MessageRole": "conversations.models.Message.Role",
        "MessageType": "conversations.models.Message.Type",
        "MediaKind": "media_uploads.models.MediaUpload.Kind",
        "ErrorCode": "yral_chat.errors.CODES",
        "ConflictReason": "yral_chat.schema.REASONS",
        "LimitType": "yral_chat.schema.LIMITS",
        "ServiceState": "yral_chat.operations.STATES",
        "OverallState": "yral_chat.operations.OVERALL",
    },
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "yral_chat.schema.completed"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "displayOperationId": True},
    "REDOC_DIST": "SIDECAR",
}

# Below WARNING these print addresses and bodies of model calls, signatures and keys of files, and what photos say of
# themselves.
TALKATIVE = ("google_genai", "httpx2", "httpcore2", "boto3", "botocore", "s3transfer", "urllib3", "PIL")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "crashes": {"()": "yral_chat.log.CrashFilter"},
        "websockets": {"()": "yral_chat.log.WebSocketFilter"},
    },
    "formatters": {"line": {"()": "yral_chat.log.LineFormatter", "style": LOG_FORMAT}},
    "handlers": {
        "nowhere": {"class": "logging.NullHandler"},
        "output": {
            "()": "yral_chat.log.Output",
            "formatter": "line",
            "file": str(BASE_DIR / LOG_FILE) if LOG_FILE else "",
            "most_bytes": int(LOG_FILE_MAX_MB * 1024 * 1024),
            "backups": LOG_FILE_BACKUPS,
        },
    },
    "root": {"handlers": ["output"], "level": LOG_LEVEL},
    "loggers": {
        "django": {"handlers": [], "propagate": True},
        "django.request": {"level": "ERROR", "filters": ["crashes"]},
        "django.security.DisallowedHost": {"handlers": ["nowhere"], "propagate": False},  # anybody can cause these
        "django.server": {"handlers": [], "propagate": True},
        "uvicorn": {"handlers": [], "propagate": True},
        "uvicorn.error": {"handlers": [], "propagate": True, "filters": ["websockets"]},
        "uvicorn.access": {"handlers": ["nowhere"], "propagate": False},  # with addresses, and their signatures
        **{name: {"level": "ERROR" if LOG_LEVEL == "ERROR" else "WARNING"} for name in TALKATIVE},
    },
}

"""The one settings file. Environments differ by variables (README lists them), never by modules.

Everything is read once, here. A value that can't be used stops the process with one sentence.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import environ

from yral_chat import __version__

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.FileAwareEnv()
_env_file = env.ENVIRON.get("ENV_FILE", str(BASE_DIR / ".env"))
if _env_file and Path(_env_file).is_file():
    env.read_env(_env_file)


def stop(sentence: str) -> NoReturn:
    raise SystemExit(f"Yral AI Chat can't start: {sentence}")


def text(name: str, default: str = "") -> str:
    """The variable, or the file that NAME_FILE points to. Blank counts as unset."""
    try:
        value = str(env.ENVIRON.get(name, "")).strip()
    except (OSError, UnicodeDecodeError) as exc:
        stop(f"{name}_FILE can't be read ({type(exc).__name__}).")
    return value or default


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
        stop(f"{name} must be between {least:g} and {most:g}.")
    return value


def words(name: str, default: str = "") -> list[str]:
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def secret(name: str, development_default: str) -> str:
    """At least 32 bytes; only development has a default."""
    value = text(name)
    if DEVELOPMENT:
        return value or development_default
    if not value:
        stop(f"{name} is missing. Set it to a secret of at least 32 bytes (openssl rand -hex 32).")
    if len(value.encode()) < 32:
        stop(f"{name} is shorter than 32 bytes. Make one with: openssl rand -hex 32")
    return value


# What this process is
ENVIRONMENT = choice("ENVIRONMENT", "development", ("development", "staging", "production"))
PRODUCTION = ENVIRONMENT == "production"
DEVELOPMENT = ENVIRONMENT == "development"
DEBUG = flag("DEBUG", default=False)
APP_NAME = text("APP_NAME", "Yral AI Chat API")
APP_VERSION = text("APP_VERSION", __version__)
HOST = text("HOST", "127.0.0.1" if DEVELOPMENT else "0.0.0.0")  # noqa: S104  a container serves all its interfaces
PORT = number("PORT", 8000, int, least=1, most=65535)
WEB_CONCURRENCY = number("WEB_CONCURRENCY", 1 if DEVELOPMENT else 2, int, least=1, most=256)
WEB_THREADS = number("WEB_THREADS", 256, int, least=1, most=4096)
LOG_LEVEL = choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))

SECRET_KEY = secret("SECRET_KEY", "development-only-secret-key-never-used-in-production")
ALLOWED_HOSTS = words("ALLOWED_HOSTS")
if PRODUCTION and not ALLOWED_HOSTS:
    stop("ALLOWED_HOSTS is missing. Set it to the host names of this service, separated by commas.")
if PRODUCTION and DEBUG:
    stop("DEBUG is on in production. Unset it: it shows internals to users.")
if not ALLOWED_HOSTS:
    ALLOWED_HOSTS = ["*"] if DEVELOPMENT else ["localhost", "127.0.0.1", "[::1]"]

# Who may call: tokens of another service, verified here
JWT_ALGORITHM = choice(
    "JWT_ALGORITHM",
    "HS256",
    ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"),
)
JWT_PUBLIC_KEY = text("JWT_PUBLIC_KEY").replace("\\n", "\n")
JWT_JWKS_URL = text("JWT_JWKS_URL")
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
if JWT_JWKS_URL and not JWT_JWKS_URL.startswith(("https://", "http://")):
    stop("JWT_JWKS_URL must be an https:// (or, inside a private network, http://) address.")

# The model
GEMINI_API_KEY = text("GEMINI_API_KEY")
if PRODUCTION and not GEMINI_API_KEY:
    stop("GEMINI_API_KEY is missing. Without a key only development answers, by its offline engine.")
GEMINI_BASE_URL = text("GEMINI_BASE_URL")
if not (GEMINI_API_KEY.isascii() and GEMINI_API_KEY.isprintable()):
    stop("GEMINI_API_KEY holds characters that no key has.")
if GEMINI_BASE_URL and not GEMINI_BASE_URL.startswith(("https://", "http://")):
    stop("GEMINI_BASE_URL must be an https:// (or http://) address.")
GEMINI_MODEL = text("GEMINI_MODEL", "gemini-2.5-flash")
GEMINI_MAX_TOKENS = number("GEMINI_MAX_TOKENS", 2048, int, least=1, most=65536)
GEMINI_TEMPERATURE = number("GEMINI_TEMPERATURE", 0.7, float, least=0, most=2)
GEMINI_THINKING_BUDGET = (
    number("GEMINI_THINKING_BUDGET", 0, int, least=-1, most=32768) if text("GEMINI_THINKING_BUDGET") else None
)
GEMINI_TIMEOUT_SECONDS = number("GEMINI_TIMEOUT_SECONDS", 25.0, float, least=0.1, most=300)

GEMINI_TRANSCRIPTION_MODEL = text("GEMINI_TRANSCRIPTION_MODEL", GEMINI_MODEL)
USE_WHISPER = flag("USE_WHISPER", default=False)
WHISPER_API_KEY = text("WHISPER_API_KEY")
WHISPER_BASE_URL = text("WHISPER_BASE_URL", "https://api.openai.com/v1").rstrip("/")
WHISPER_MODEL = text("WHISPER_MODEL", "whisper-1")
if USE_WHISPER and not WHISPER_API_KEY and "WHISPER_BASE_URL" not in env.ENVIRON:
    stop("USE_WHISPER=true needs WHISPER_API_KEY, or WHISPER_BASE_URL of a server that asks for none.")

# Pictures and sounds: in a folder, or in an S3-compatible bucket
MAX_IMAGE_SIZE_MB = number("MAX_IMAGE_SIZE_MB", 10, int, least=1, most=100)
MAX_AUDIO_SIZE_MB = number("MAX_AUDIO_SIZE_MB", 20, int, least=1, most=100)
MAX_AUDIO_DURATION_SECONDS = number("MAX_AUDIO_DURATION_SECONDS", 300, int, least=1, most=300)
CONTEXT_IMAGES = number("CONTEXT_IMAGES", 3, int, least=0, most=10)
ALLOW_EXTERNAL_MEDIA = flag("ALLOW_EXTERNAL_MEDIA", default=False)
MEDIA_UPLOAD_DIR = BASE_DIR / text("MEDIA_UPLOAD_DIR", "uploads")
MEDIA_BASE_URL = text("MEDIA_BASE_URL").rstrip("/")
MEDIA_X_ACCEL_PREFIX = text("MEDIA_X_ACCEL_PREFIX").rstrip("/")
USE_S3 = flag("USE_S3", default=False)
AWS_ACCESS_KEY_ID = text("AWS_ACCESS_KEY_ID")
AWS_SECRET_ACCESS_KEY = text("AWS_SECRET_ACCESS_KEY")
AWS_S3_BUCKET = text("AWS_S3_BUCKET")
AWS_REGION = text("AWS_REGION", "us-east-1")
S3_ENDPOINT_URL = text("S3_ENDPOINT_URL", text("S3_ENDPOINT")).rstrip("/")
S3_PUBLIC_URL_BASE = text("S3_PUBLIC_URL_BASE").rstrip("/")
S3_ADDRESSING_STYLE = choice("S3_ADDRESSING_STYLE", "auto", ("auto", "path", "virtual"))
S3_URL_EXPIRES_SECONDS = number("S3_URL_EXPIRES_SECONDS", 900, int, least=3, most=604800)
if USE_S3 and not (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and AWS_S3_BUCKET):
    stop("USE_S3=true needs AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_S3_BUCKET.")
for _name, _address in (
    ("MEDIA_BASE_URL", MEDIA_BASE_URL),
    ("S3_ENDPOINT_URL", S3_ENDPOINT_URL),
    ("WHISPER_BASE_URL", WHISPER_BASE_URL),
):
    if _address and not _address.startswith(("https://", "http://")):
        stop(f"{_name} must be an https:// (or http://) address.")
FILE_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
FILE_UPLOAD_HANDLERS = [
    "django.core.files.uploadhandler.MemoryFileUploadHandler",
    "django.core.files.uploadhandler.TemporaryFileUploadHandler",
]
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 10
UPLOAD_MAX_BODY_SIZE = max(MAX_IMAGE_SIZE_MB, MAX_AUDIO_SIZE_MB) * 1024 * 1024 + 64 * 1024

# Database: SQLite embedded, or PostgreSQL
_database_path = text("DATABASE_PATH", "data/yral_chat.db")
DATABASE_URL = text("DATABASE_URL", f"sqlite:///{_database_path}")
DATABASE_POOL_SIZE = number("DATABASE_POOL_SIZE", 10, int, least=1, most=1000)


def sqlite(database: dict[str, Any]) -> dict[str, Any]:
    """WAL and IMMEDIATE: writers queue for `timeout` seconds instead of failing; readers never wait.

    A page cache of 256 KiB a connection: hundreds of threads hold one each. No mmap.
    """
    path = BASE_DIR / database["NAME"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        stop(f"the folder of DATABASE_URL can't be made ({exc.strerror}).")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-256;",
        },
        "TEST": {"NAME": path.with_name("test.sqlite3")},
    }


def postgresql(database: dict[str, Any]) -> dict[str, Any]:
    """Connections come from a pool of the process and are back in it while the model thinks."""
    pool = {"min_size": 1, "max_size": DATABASE_POOL_SIZE, "timeout": 20, "max_idle": 120}
    return {**database, "CONN_MAX_AGE": 0, "OPTIONS": {**database.get("OPTIONS", {}), "pool": pool}}


def database() -> dict[str, Any]:
    looks = "DATABASE_URL must look like sqlite:///data/chat.db or postgres://user:password@host:5432/name."
    if not DATABASE_URL.startswith(("sqlite:///", "postgres://", "postgresql://")):
        stop(looks)
    try:
        parsed = env.db_url_config(DATABASE_URL)
    except Exception as exc:  # whatever the parser trips over, the reader needs the variable's name
        stop(f"DATABASE_URL can't be read ({type(exc).__name__}).")
    kinds = {"django.db.backends.sqlite3": sqlite, "django.db.backends.postgresql": postgresql}
    if parsed.get("ENGINE") not in kinds or not parsed.get("NAME"):
        stop(looks)
    return kinds[parsed["ENGINE"]](parsed)


DATABASES = {"default": database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Django
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "yral_chat",
    "personas",
    "media_uploads",
    "conversations",
]
MIDDLEWARE = [
    "yral_chat.middleware.CorrelationMiddleware",
    "yral_chat.middleware.BodyLimitMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
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
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PRODUCTION
SESSION_COOKIE_HTTPONLY = True

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "media": {"BACKEND": f"media_uploads.storage.{'S3Media' if USE_S3 else 'LocalMedia'}"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = DEVELOPMENT
WHITENOISE_MAX_AGE = 0 if DEVELOPMENT else 3600

# The API
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["yral_chat.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["yral_chat.json.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": [
        "yral_chat.json.FastJSONRenderer",
        *(["rest_framework.renderers.BrowsableAPIRenderer"] if DEVELOPMENT else []),
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
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": [],
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "InfluencerStatus": "personas.models.Influencer.Status",
        "MessageRole": "conversations.models.Message.Role",
        "MessageType": "conversations.models.Message.Type",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "displayOperationId": True},
    "REDOC_DIST": "SIDECAR",
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "correlation": {"()": "yral_chat.log.CorrelationFilter"},
        "crashes": {"()": "yral_chat.log.CrashFilter"},
    },
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s [%(correlation_id)s] %(message)s"}},
    "handlers": {
        "nowhere": {"class": "logging.NullHandler"},
        "stdout": {
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stdout",
            "formatter": "line",
            "filters": ["correlation"],
        },
    },
    "root": {"handlers": ["stdout"], "level": LOG_LEVEL},
    "loggers": {
        "django": {"handlers": [], "propagate": True},
        "django.request": {"level": "ERROR", "filters": ["crashes"]},
        "django.security.DisallowedHost": {"handlers": ["nowhere"], "propagate": False},  # anybody can cause these
        "django.server": {"handlers": [], "propagate": True},
        # These print the addresses and, at DEBUG, the bodies of model calls.
        "google_genai": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "httpcore2": {"level": "WARNING"},
    },
}

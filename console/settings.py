"""Django settings of fhirbots: one file, read from the environment (README.md lists the variables).

Two forms (ARCHITECTURE.md): *embedded*, where `manage.py start` runs PostgreSQL out of `DATA_DIR`, and *services*, where
`DATABASE_URL` and `CELERY_BROKER_URL` name what to use. The same settings serve both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
import dj_email_url
from csp.constants import NONE, SELF
from deno import find_deno_bin
from django.core.exceptions import ImproperlyConfigured

from console.postgres import socket_folder


def _integer(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {os.environ[name]!r}.") from None


def _list(name: str, default: str) -> list[str]:
    return [word.strip() for word in (os.environ.get(name) or default).split(",") if word.strip()]


def _switch(name: str, *, default: bool) -> bool:
    word = os.environ.get(name, "").lower()
    if word not in {"", "0", "1", "false", "true", "no", "yes"}:
        raise ImproperlyConfigured(f"{name} must be 1 or 0, not {word!r}.")
    return word in {"1", "true", "yes"} if word else default


BASE_DIR = Path(__file__).resolve().parent.parent

DATA_DIR = Path(os.environ.get("FHIRBOTS_DATA") or "var").resolve()
"""Data of the embedded form: database and secret key. `manage.py start --data` sets it."""

ASSETS_DIR = Path(os.environ.get("FHIRBOTS_ASSETS") or BASE_DIR / ".assets").resolve()
"""What `manage.py assets` builds: static files, FHIR definitions, sandbox runtime."""

DEBUG = _switch("DEBUG", default=False)

# --- addresses -------------------------------------------------------------------------------------------------------

BASE_URL = (os.environ.get("BASE_URL") or "http://127.0.0.1:8000").rstrip("/") + "/"
"""The address clients use; it stands in references, tokens and presigned URLs. Ends with a slash."""

_base = urlsplit(BASE_URL)
if _base.scheme not in {"http", "https"} or not _base.hostname:
    raise ImproperlyConfigured(f"BASE_URL must be an http or https address, not {BASE_URL!r}.")

ALLOWED_HOSTS = _list("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{_base.hostname}")
CORS_ALLOWED_ORIGINS = _list("CORS_ALLOWED_ORIGINS", "")
"""Web pages of these origins may call the API besides the console's own; `*` stands for all."""

CSRF_TRUSTED_ORIGINS = [f"{_base.scheme}://{_base.netloc}"]
SECURE_COOKIES = _base.scheme == "https"

TRUST_PROXY_HEADERS = _switch("TRUST_PROXY_HEADERS", default=False)
if TRUST_PROXY_HEADERS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    USE_X_FORWARDED_HOST = True

# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET_KEY_FILE = DATA_DIR / "secret_key"
try:
    SECRET_KEY = os.environ.get("SECRET_KEY") or SECRET_KEY_FILE.read_text(encoding="ascii").strip()
except OSError:
    SECRET_KEY = ""  # Django refuses to sign anything with an empty key; `console.wsgi` says so at the start
SECRET_KEY_FALLBACKS = _list("SECRET_KEY_FALLBACKS", "")

# --- applications ----------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "rest_framework",
    "fhirstore",
    "bots",
    "console",
]

MIDDLEWARE = [
    "fhirstore.rest.middleware.ApiMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "console.middleware.ConsoleMiddleware",
    # refuses foreign host names: last, because the page that says so needs what the others add to the request
    "django.middleware.common.CommonMiddleware",
]

ROOT_URLCONF = "console.urls"
WSGI_APPLICATION = "console.wsgi.application"
APPEND_SLASH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 1024 * 1024

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- database --------------------------------------------------------------------------------------------------------

DATABASE_URL = os.environ.get("DATABASE_URL", "")
"""Empty in the embedded form."""

try:
    DATABASES: dict[str, Any] = {
        "default": (
            dj_database_url.parse(DATABASE_URL, conn_max_age=None, conn_health_checks=True)
            if DATABASE_URL
            else {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "fhirbots",
                "USER": "fhirbots",
                "HOST": str(socket_folder(DATA_DIR)),
                "CONN_MAX_AGE": None,
                "CONN_HEALTH_CHECKS": True,
            }
        )
    }
except ValueError:  # its text would show the password
    raise ImproperlyConfigured("DATABASE_URL is no database address.") from None
if DATABASES["default"].get("ENGINE") != "django.db.backends.postgresql":
    raise ImproperlyConfigured(
        "DATABASE_URL must be a postgresql:// address: fhirbots runs on PostgreSQL only."
    )
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- background work -------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL") or "postgresql://default"
"""`amqp://…`, `redis://…`, or `postgresql://default` for `console.broker` in the project's own database."""

WEB_WORKERS = _integer("FHIRBOTS_WEB_WORKERS", min(2, os.cpu_count() or 1))
WEB_THREADS = _integer("FHIRBOTS_WEB_THREADS", 16)
"""Processes of the web server, and threads of each: a request that waits for a Bot keeps one thread busy."""

WEBSOCKETS = _switch("FHIRBOTS_WEBSOCKETS", default=False)
"""Whether WebSockets are served: `manage.py start` runs `console/rsgi.py` then, in the services form the operator does."""

WORKER_THREADS = _integer("FHIRBOTS_WORKER_THREADS", 8)
"""Bots that one worker process runs at the same time."""

SANDBOX: dict[str, Any] = {
    "size": _integer("FHIRBOTS_SANDBOX_SIZE", 64),
    "spare": _integer("FHIRBOTS_SANDBOX_SPARE", 2),
    "deno": Path(find_deno_bin()),
    "runtime": ASSETS_DIR / "runtime",
}
"""The pool of sandbox processes of a worker: how many at most, how many wait ready for a Bot not seen lately."""

NATIVE_PYTHON = frozenset(_list("FHIRBOTS_NATIVE_PYTHON", ""))
"""Projects whose Bots may run in CPython behind the system's layers alone, by id; `*` is all of them."""

PRIVATE_HOSTS = _list("FHIRBOTS_PRIVATE_HOSTS", "")
"""Hosts (``name`` or ``name:port``) and networks (``10.1.0.0/16``) without public addresses that may be reached all the same:
`bots/egress.py`."""

# --- mail ------------------------------------------------------------------------------------------------------------

EMAIL_URL = os.environ.get("EMAIL_URL") or "smtp://localhost:25"
"""Where mail goes: `smtp+tls://user:password@host:587`, `smtp+ssl://…`, `consolemail://`, `file:///folder`."""
try:
    _mail = dj_email_url.parse(EMAIL_URL)
    EMAIL_BACKEND = _mail["EMAIL_BACKEND"]
except (KeyError, ValueError):  # its text could show the password
    raise ImproperlyConfigured(
        "EMAIL_URL is no mail address of the form smtp+tls://user:password@host:587."
    ) from None
EMAIL_HOST, EMAIL_PORT = _mail.get("EMAIL_HOST") or "localhost", _mail.get("EMAIL_PORT") or 25
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = (
    _mail.get("EMAIL_HOST_USER") or "",
    _mail.get("EMAIL_HOST_PASSWORD") or "",
)
EMAIL_USE_TLS, EMAIL_USE_SSL = bool(_mail.get("EMAIL_USE_TLS")), bool(_mail.get("EMAIL_USE_SSL"))
EMAIL_FILE_PATH = f"/{_mail.get('EMAIL_FILE_PATH', '').lstrip('/')}"
EMAIL_TIMEOUT = 20
DEFAULT_FROM_EMAIL = SERVER_EMAIL = os.environ.get("DEFAULT_FROM_EMAIL") or f"fhirbots@{_base.hostname}"

# --- people and sessions ---------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "fhirstore.User"
LOGIN_URL = "/signin"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_NAME = "fhirbots_session"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = SECURE_COOKIES
CSRF_COOKIE_NAME = "fhirbots_csrf"
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SECURE = SECURE_COOKIES
CSRF_FAILURE_VIEW = "console.views.errors.csrf_failure"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"

# --- browser security ------------------------------------------------------------------------------------------------

SECURE_HSTS_SECONDS = _integer("SECURE_HSTS_SECONDS", 3600 if SECURE_COOKIES else 0)
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],  # the editor page adds what Monaco needs: console/views/editor.py
        "font-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

# --- language, time, files -------------------------------------------------------------------------------------------

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = ASSETS_DIR / "collected"
STATICFILES_DIRS = [BASE_DIR / "static", ASSETS_DIR / "static"]

MAX_BINARY_BYTES = _integer("MAX_BINARY_BYTES", 2**30)

MAX_JSON_BYTES = _integer("MAX_JSON_BYTES", 32 * 2**20)
"""Largest body of any other request."""

DATABASE_STATEMENT_TIMEOUT = _integer("DATABASE_STATEMENT_TIMEOUT", 30)
"""Seconds after which a search is given up."""

# The defaults are more than one machine serves: they stop only what has gone wild. 0 limits nothing.
RATE_LIMIT_REQUESTS = _integer("RATE_LIMIT_REQUESTS", 600_000)
"""Requests to the API by one address in a minute, for each web process."""

RATE_LIMIT_POINTS = _integer("RATE_LIMIT_POINTS", 20_000_000)
"""Points of FHIR interactions by one client in a minute, for each web process: a read costs 1, a history 10, a search 20, a write 100."""
"""Largest content of a Binary; it is never held in memory as a whole."""

BINARY_STORAGE = os.environ.get("BINARY_STORAGE", "")
"""Empty: files below `DATA_DIR`. `s3://bucket/folder`: S3 or what speaks it; boto3 reads the rest from the environment."""


def _binary_storage() -> dict[str, Any]:
    address = urlsplit(BINARY_STORAGE)
    if not BINARY_STORAGE:
        return {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            # patient data: only the server's own user may read it
            "OPTIONS": {
                "location": DATA_DIR / "binary",
                "file_permissions_mode": 0o600,
                "directory_permissions_mode": 0o700,
            },
        }
    if address.scheme != "s3" or not address.netloc:
        raise ImproperlyConfigured("BINARY_STORAGE must be s3://bucket or s3://bucket/folder.")
    return {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": address.netloc,
            "location": address.path.strip("/"),
            "default_acl": None,
            "max_memory_size": 1024 * 1024,
        },
    }


STORAGES = {
    "binary": _binary_storage(),
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "console.assets.StaticStorage"},
}
WHITENOISE_KEEP_ONLY_HASHED_FILES = True
WHITENOISE_MAX_AGE = 3600
# `.assets/static` comes into being with the first `manage.py assets`
SILENCED_SYSTEM_CHECKS = ["staticfiles.W004"]

# --- log -------------------------------------------------------------------------------------------------------------

LOG_FORMAT = os.environ.get("LOG_FORMAT") or "line"
if LOG_FORMAT not in {"line", "json"}:
    raise ImproperlyConfigured(f"LOG_FORMAT must be line or json, not {LOG_FORMAT!r}.")

BOT_LOG = os.environ.get("FHIRBOTS_BOT_LOG", "")
"""Where the runs of Bots with ``auditEventDestination`` ``log`` are written as JSON lines: a file, or ``-`` for the output; empty: nowhere.
They hold what Bots print, so it is the operator who opens this way out."""

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "console.log.LineFormatter"}, "json": {"()": "console.log.JsonFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "INFO").upper()},
    "loggers": {
        # at lower levels Celery names arguments and results, authlib tokens, Django every answer that refuses something
        "celery": {"level": "WARNING"},
        "kombu": {"level": "WARNING"},
        "authlib": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
        "django.security": {"level": "ERROR"},
    },
}

if BOT_LOG:
    LOGGING["formatters"]["bare"] = {"format": "%(message)s"}
    LOGGING["handlers"]["bots"] = {"formatter": "bare"} | (
        {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
        if BOT_LOG == "-"
        else {"class": "logging.handlers.WatchedFileHandler", "filename": BOT_LOG, "delay": True}
    )
LOGGING["loggers"]["bots.audit"] = {
    "handlers": ["bots"] if BOT_LOG else [],
    "level": "INFO" if BOT_LOG else "CRITICAL",
    "propagate": False,
}

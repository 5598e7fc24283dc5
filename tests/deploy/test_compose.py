"""compose.yaml and compose.scale.yaml, as the real Docker Compose understands them: it checks them by the schema of the
specification, and needs no engine for that."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as configured
from dockerfile_parse import DockerfileParser
from dotenv import dotenv_values

from tests.deploy.test_deliver import AWKWARD
from tests.deploy.test_deploy import BACK, BESIDE, STEPS
from tests.deploy.test_nginx import Echo
from tests.nginx import NGINX, needs_nginx, running_nginx
from tests.servers import API_KEY, JWT_SECRET, free_port, python
from tests.yral_chat.test_house import read_from_the_environment

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

ROOT: Path = configured.BASE_DIR
ALONE, SCALED = ("deploy/compose.yaml",), ("deploy/compose.yaml", "deploy/compose.scale.yaml")
TWO = {"JWT_SECRET_KEY": JWT_SECRET, "GEMINI_API_KEY": API_KEY}
FOR_SCALE = {"POSTGRES_PASSWORD": "a-password-0", "SECRET_KEY": "the-secret-key-of-the-servers-Bq5wHj2Zr8Nc4Xv"}
SERVICES = {"yral-ai-chat": 8000, "yral-ai-chat-staging": 8001, "metabase": 3000, "metabase-staging": 3001}
OF_COMPOSE = {"IMAGE_TAG", "NETWORK_PREFIX", "HTTP_PORT", "CERTBOT_EMAIL", "STAGING_DATA", "METABASE_API_KEY"}
OF_SCALE = {"POSTGRES_PASSWORD", "POSTGRES_MAX_CONNECTIONS"}


def program() -> str:
    """The real one; what is in bin forgets how it ended."""
    spec = importlib.util.find_spec("compose")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).with_name("docker-compose"))


def compose(*files: str, root: Path = ROOT, variables: dict[str, str] = TWO) -> subprocess.CompletedProcess[str]:
    """What `docker compose config` makes of them, with these variables and no .env."""
    options = [word for file in files for word in ("-f", str(root / file))]
    line = [program(), *options, "config", "--format", "json"]
    env = {"PATH": os.environ["PATH"], "HOME": str(root), "COMPOSE_DISABLE_ENV_FILE": "1", **variables}
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)


def understood(*files: str, **variables: str) -> dict[str, Any]:
    ran = compose(*files, variables=TWO | FOR_SCALE | variables)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.fixture(scope="module", params=[ALONE, SCALED], ids=["alone", "scaled"])
def project(request: pytest.FixtureRequest) -> dict[str, Any]:
    return understood(*request.param)


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, Any]:
    return dict(project["services"])


# By the schema


def test_two_variables_suffice() -> None:
    ran = compose(*ALONE)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("missing", TWO)
def test_without_one_of_them_it_says_which(missing: str) -> None:
    ran = compose(*ALONE, variables={name: value for name, value in TWO.items() if name != missing})
    assert ran.returncode != 0
    assert f"{missing} is missing" in ran.stderr


@pytest.mark.parametrize("missing", FOR_SCALE)
def test_many_processes_need_two_more(missing: str) -> None:
    ran = compose(*SCALED, variables=TWO | {name: value for name, value in FOR_SCALE.items() if name != missing})
    assert ran.returncode != 0
    assert missing in ran.stderr


@pytest.mark.parametrize("file", SCALED)
def test_what_the_specification_does_not_know_would_be_refused(tmp_path: Path, file: str) -> None:
    """That the schema is looked at at all."""
    broken = yaml.safe_load((ROOT / file).read_text())
    broken["services"]["yral-ai-chat"]["restarts"] = "always"
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    ran = compose(str(tmp_path / "broken.yaml"), variables=TWO | FOR_SCALE)
    assert ran.returncode != 0
    assert "restarts" in ran.stderr


# What there is


def test_the_services_and_their_ports(services: dict[str, Any]) -> None:
    assert SERVICES.keys() | {"nginx", "folders", "jobs", "jobs-staging"} <= services.keys()
    for name, port in SERVICES.items():
        (published,) = services[name]["ports"]
        assert (published["target"], published["published"], published["host_ip"]) == (port, str(port), "127.0.0.1")
    assert {one["published"] for one in services["nginx"]["ports"]} == {"80", "443"}
    others = services.keys() - SERVICES.keys() - {"nginx", "yral-ai-chat-2"}
    assert not [name for name in others if "ports" in services[name]]


def test_all_is_persisted_where_it_is_looked_for(project: dict[str, Any], services: dict[str, Any]) -> None:
    def mounts(service: str) -> dict[str, str]:
        return {one["target"]: one["source"].replace(f"{ROOT}/", "./") for one in services[service]["volumes"]}

    assert mounts("yral-ai-chat") == {"/app/data": "./data", "/app/uploads": "./uploads", "/app/logs": "./logs"}
    staging = mounts("yral-ai-chat-staging")
    assert staging["/app/data"] == "./data/staging"
    assert not set(staging.values()) & set(mounts("yral-ai-chat").values()), "no folder is both's"
    assert mounts("metabase")["/metabase-data"] == "metabase-data"
    assert {"metabase-data", "metabase-staging-data"} <= project["volumes"].keys()
    image = DockerfileParser(str(ROOT / "Dockerfile"))
    volumes = next(json.loads(line["value"]) for line in image.structure if line["instruction"] == "VOLUME")
    assert set(volumes) == mounts("yral-ai-chat").keys()


@pytest.mark.parametrize("name", ["metabase", "metabase-staging"])
def test_metabase_sees_the_export_alone_and_cannot_write_it(services: dict[str, Any], name: str) -> None:
    files = [one for one in services[name]["volumes"] if one["type"] == "bind"]
    (export,) = files
    live = next(
        one for one in services[name.replace("metabase", "yral-ai-chat")]["volumes"] if one["target"] == "/app/data"
    )
    assert export["read_only"] is True
    assert export["source"] == f"{live['source']}/analytics"
    writer = services[name.replace("metabase", "jobs")]
    assert live in writer["volumes"]
    assert f"/app/{writer['environment']['ANALYTICS_PATH']}" == "/app/data/analytics/analytics.db"
    assert writer["environment"]["METABASE_URL"] == f"http://{name}:{SERVICES[name]}"
    # What dashboard.py tells Metabase to open
    assert f'"{export["target"]}/analytics.db"' in (ROOT / "deploy/metabase/dashboard.py").read_text()
    assert not {"env_file", "secrets"} & services[name].keys()
    assert not [key for key in services[name]["environment"] if key in read_from_the_environment()]


def test_each_is_watched_limited_and_started_again(services: dict[str, Any]) -> None:
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= limits.keys(), name
        assert "no-new-privileges:true" in service["security_opt"], name
        own = f"{name.removesuffix('-2').replace('jobs', 'yral-ai-chat')}:latest"
        assert re.search(r":v?\d+\.\d+", service["image"]) or service["image"] == own, name
        if name != "folders":
            assert service["restart"] == "unless-stopped", name
            ours = name.startswith(("yral-ai-chat", "jobs"))
            assert ours or service["healthcheck"]["test"], f"{name}: ours has the image's own"


def test_ours_run_as_nobody_on_a_read_only_root(services: dict[str, Any]) -> None:
    user = DockerfileParser(str(ROOT / "Dockerfile")).structure
    (of_the_image,) = [line["value"].partition(":")[0] for line in user if line["instruction"] == "USER"]
    ours = [one for name, one in services.items() if name.startswith("yral-ai-chat")]
    for service in ours:
        assert service["user"] == f"{of_the_image}:101", "the group that nginx reads with"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert [one.partition(":")[0] for one in service["tmpfs"]] == ["/tmp"]
        assert service["stop_grace_period"] == f"2m{configured.GRACEFUL_TIMEOUT + 5 - 120}s"
        assert service["depends_on"]["folders"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["yral-ai-chat", "yral-ai-chat-staging"])
def test_the_jobs_are_done_by_the_service_s_image_with_its_settings_and_folders(
    services: dict[str, Any], name: str
) -> None:
    service, jobs = services[name], services[name.replace("yral-ai-chat", "jobs")]
    for same in ("image", "volumes", "secrets", "user", "read_only", "tmpfs", "cap_drop"):
        assert jobs[same] == service[same], same
    own = {"LOG_FILE", "METABASE_URL", "METABASE_API_KEY"}
    assert {k: v for k, v in jobs["environment"].items() if k not in own} == service["environment"]
    assert jobs["networks"].keys() == service["networks"].keys()
    assert jobs["depends_on"][name]["condition"] == "service_healthy", "it has migrated"
    (program,) = jobs["entrypoint"]
    copied = [line["value"].split() for line in DockerfileParser(str(ROOT / "Dockerfile")).structure]
    assert any(program.removeprefix("/app/") in words and words[-1] == "./deploy/" for words in copied)
    assert os.access(ROOT / program.removeprefix("/app/"), os.X_OK)


# What it names is there


def test_every_variable_that_it_names_is_known_to_somebody() -> None:
    of_nginx = set(re.findall(r"^\| `([A-Z_]+)`", (NGINX / "README.md").read_text(), flags=re.M))
    for file in SCALED:
        text = re.sub(r"#.*", "", (ROOT / file).read_text())
        named = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
        of_the_service = {name for name in named if name.removesuffix("_FILE") in read_from_the_environment()}
        assert named == of_the_service | named & (of_nginx | OF_COMPOSE | OF_SCALE), file
    assert all(f"`{name}`" in (NGINX / "README.md").read_text() for name in OF_COMPOSE)


def test_what_is_passed_on_is_read(services: dict[str, Any]) -> None:
    ours = [one for name, one in services.items() if name.startswith("yral-ai-chat")]
    for service in ours:
        assert {name.removesuffix("_FILE") for name in service["environment"]} <= read_from_the_environment()
    script = (NGINX / "15-yral-chat.envsh").read_text()
    for name in services["nginx"]["environment"]:
        assert f"${{{name}:-" in script, name


ASK = "import json; from django.conf import settings as s; print(json.dumps({n: str(getattr(s, n)) for n in %r}))"
ASKED = ["ENVIRONMENT", "HOST", "PORT", "SCRIPT_NAME", "ALLOWED_HOSTS", "TRUSTED_PROXIES", "MEDIA_BASE_URL"]
ASKED += ["MEDIA_X_ACCEL_PREFIX", "ADMIN_PATH", "UPLOAD_MAX_BODY_SIZE", "JWT_ISSUER", "CACHES"]


@pytest.mark.parametrize("name", ["yral-ai-chat", "yral-ai-chat-staging"])
def test_the_service_can_be_configured_so(services: dict[str, Any], tmp_path: Path, name: str) -> None:
    """By the values that its container gets; only the folder of the database is this test's."""
    env = {"ENV_FILE": "", "DJANGO_SETTINGS_MODULE": "yral_chat.settings", **services[name]["environment"]}
    ran = python(env | {"DATABASE_PATH": str(tmp_path / "chat.db"), "LOG_FILE": ""}, "-c", ASK % ASKED)
    assert ran.returncode == 0, ran.stderr
    known = json.loads(ran.stdout)

    is_staging = name.endswith("staging")
    assert known["ENVIRONMENT"] == ("staging" if is_staging else "production")
    assert (known["HOST"], known["PORT"]) == ("0.0.0.0", str(SERVICES[name]))
    assert known["SCRIPT_NAME"] == ("/staging" if is_staging else "")
    nginx = services["nginx"]["networks"]["front"]["ipv4_address"]
    assert known["TRUSTED_PROXIES"] == str([nginx])
    assert known["MEDIA_BASE_URL"] == f"https://localhost{known['SCRIPT_NAME']}/media"
    template = (NGINX / "templates/yral_chat.conf.template").read_text()
    assert f"location {known['MEDIA_X_ACCEL_PREFIX']}/ {{" in template
    assert known["JWT_ISSUER"] == str(["https://auth.yral.com"])
    assert known["ADMIN_PATH"] == "admin/"


def test_the_names_and_addresses_of_nginx_are_those_of_the_services(services: dict[str, Any]) -> None:
    nginx = services["nginx"]
    asked = [word for name, value in nginx["environment"].items() if "UPSTREAM" in name for word in value.split(",")]
    told = dict(entry.split("=") for entry in nginx["extra_hosts"])
    assert {word.partition(":")[0] for word in asked} == told.keys()
    for word in asked:
        host, _, port = word.partition(":")
        assert told[host] == services[host]["networks"]["front"]["ipv4_address"]
        assert int(port) in {one["target"] for one in services[host]["ports"]}
        environment = services[host]["environment"]
        assert environment.get("PORT") == port or environment.get("MB_JETTY_PORT") == port


def test_nginx_sends_the_files_that_the_services_keep(services: dict[str, Any]) -> None:
    def source(service: str, target: str) -> str:
        return str(next(one["source"] for one in services[service]["volumes"] if one["target"] == target))

    nginx = services["nginx"]["environment"]
    assert source("nginx", nginx["MEDIA_FOLDER"]) == source("yral-ai-chat", "/app/uploads")
    assert source("nginx", nginx["STAGING_MEDIA_FOLDER"]) == source("yral-ai-chat-staging", "/app/uploads")
    for mount in services["nginx"]["volumes"]:
        assert mount.get("read_only") or mount["target"] == "/var/cache/nginx", mount
        if mount["type"] == "bind" and "/deploy/" in mount["source"]:
            assert Path(mount["source"]).exists()
    assert os.access(NGINX / "15-yral-chat.envsh", os.X_OK), "the image reads it only then"


def test_its_nginx_starts_with_what_it_gets(services: dict[str, Any], tmp_path: Path) -> None:
    """Names are addresses of this machine here; ports and folders stay."""
    needs_nginx()
    here = {name: value for name, value in services["nginx"]["environment"].items() if "FOLDER" not in name}
    here = {name: re.sub(r"[a-z0-9-]+(?=:\d)", "127.0.0.1", value) for name, value in here.items()}
    del here["SERVER_NAME"], here["HTTPS_PORT"]
    with running_nginx(tmp_path, **here) as nginx:
        assert nginx.call("GET", "/metrics").status == 404


def test_the_service_s_limits_reach_both() -> None:
    changed = {"MAX_AUDIO_SIZE_MB": "40", "ADMIN_PATH": "staff-7f3a/", "SERVER_NAME": "chat.example"}
    services = understood(*ALONE, **changed)["services"]
    assert services["nginx"]["environment"].items() >= changed.items()
    staging = services["yral-ai-chat-staging"]["environment"]
    assert (staging["MAX_AUDIO_SIZE_MB"], staging["ADMIN_PATH"]) == ("40", "staff-7f3a/")
    assert staging["MEDIA_BASE_URL"] == "https://chat.example/staging/media"


# Secrets


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text("from-a-file-Yz6mQw2Kd9Rb4Tn8Vx1Lc7Hs3")
    services = understood(*ALONE, JWT_SECRET_KEY="", JWT_SECRET_KEY_FILE=str(tmp_path / "jwt"))["services"]
    env = services["yral-ai-chat"]["environment"]
    assert env["JWT_SECRET_KEY_FILE"] == "/run/secrets/jwt_secret_key"
    assert {one["target"] for one in services["yral-ai-chat"]["secrets"]} >= {env["JWT_SECRET_KEY_FILE"]}

    here = env | {"JWT_SECRET_KEY_FILE": str(tmp_path / "jwt"), "DATABASE_PATH": str(tmp_path / "chat.db")}
    here |= {"ENV_FILE": "", "LOG_FILE": "", "DJANGO_SETTINGS_MODULE": "yral_chat.settings"}
    ran = python(here, "-c", "from django.conf import settings; print(settings.JWT_SECRET_KEY.partition('-Y')[0])")
    assert ran.stdout == "from-a-file\n", ran.stderr


def test_production_reads_env_and_staging_only_its_own(tmp_path: Path) -> None:
    """Staging never sees production's database, whatever .env names."""
    (tmp_path / ".env").write_text("DATABASE_URL=postgres://u:p@db/production\nENVIRONMENT=development\nPORT=9\n")
    (tmp_path / ".env.staging").write_text("LOG_LEVEL=DEBUG\n")
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / ALONE[0], tmp_path / "deploy")
    ran = compose(*ALONE, root=tmp_path)
    assert ran.returncode == 0, ran.stderr
    services = json.loads(ran.stdout)["services"]
    production, staging = services["yral-ai-chat"]["environment"], services["yral-ai-chat-staging"]["environment"]
    assert production["DATABASE_URL"] == "postgres://u:p@db/production"
    assert (production["ENVIRONMENT"], production["PORT"]) == ("production", "8000")
    assert "DATABASE_URL" not in staging
    assert staging["LOG_LEVEL"] == "DEBUG"


def test_what_deliver_sh_writes_is_to_compose_what_it_is_to_the_service(tmp_path: Path) -> None:
    key = "-----BEGIN PUBLIC KEY-----\\nMFkw\\n-----END PUBLIC KEY-----"  # its line ends written \\n
    values = {"JWT_PUBLIC_KEY": key, "APP_NAME": AWKWARD, "GEMINI_MODEL": "two\nlines"}
    script = str(ROOT / "deploy/settings_file.py")
    env = {"PATH": os.environ["PATH"], "VARIABLES": json.dumps(values)}
    made = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
    (tmp_path / "settings.env").write_text(made.stdout)
    (tmp_path / "compose.yaml").write_text(
        "services: {one: {image: x, env_file: [settings.env], environment: {FILLED_IN: '${APP_NAME}'}}}\n"
    )
    command = [program(), "--env-file", "settings.env", "config", "--format", "json"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    read = json.loads(ran.stdout)["services"]["one"]["environment"]
    read = {name: value.replace("$$", "$") for name, value in read.items()}  # config writes it so
    assert read == values | {"FILLED_IN": AWKWARD}
    assert dotenv_values(tmp_path / "settings.env", interpolate=False) == values


# Many processes


def test_many_processes_share_one_database_and_one_cache() -> None:
    services = understood(*SCALED)["services"]
    first, second = services["yral-ai-chat"], services["yral-ai-chat-2"]
    for name in ("DATABASE_URL", "CACHE_URL", "SECRET_KEY", "JWT_SECRET_KEY", "MEDIA_BASE_URL", "TRUSTED_PROXIES"):
        assert first["environment"][name] == second["environment"][name]
    differ = {"networks", "ports", "depends_on"}
    assert {k: v for k, v in first.items() if k not in differ} == {k: v for k, v in second.items() if k not in differ}
    assert second["depends_on"]["yral-ai-chat"]["condition"] == "service_healthy", "one migrates"
    assert "DATABASE_URL" not in services["yral-ai-chat-staging"]["environment"]
    assert "back" not in services["nginx"]["networks"]
    needed = 2 * 2 * int(first["environment"]["WEB_CONCURRENCY"]) * int(first["environment"]["DATABASE_POOL_SIZE"])
    assert f"max_connections={needed + 40}" in services["postgresql"]["command"]


def test_a_backend_that_is_down_is_passed_over(tmp_path: Path) -> None:
    """Of two containers one may be away: its share goes to the other."""
    echo = Echo()
    with running_nginx(tmp_path, CHAT_UPSTREAM=f"127.0.0.1:{free_port()},{echo.address}") as nginx:
        assert [nginx.call("GET", "/health").status for _ in range(6)] == [200] * 6
    echo.shutdown()
    echo.server_close()


# The folders


def test_the_folders_are_the_service_s_before_it_starts(services: dict[str, Any], tmp_path: Path) -> None:
    """The container's own line, below another root and with whoever runs the test for the owner."""
    folders = services["folders"]
    owner = services["yral-ai-chat"]["user"]
    (line,) = folders["command"]
    for name in ("data", "uploads", "logs", "staging"):
        (tmp_path / name).mkdir()
    assert owner in line
    owner, group = str(os.getuid()), str(os.getgid())
    here = line.replace("cd /folders", f"cd {tmp_path}").replace("10001:101", f"{owner}:{group}")
    here = here.replace("-user 10001 -group 101", f"-user {owner} -group {group}")
    for _ in range(2):
        subprocess.run([*folders["entrypoint"], here], check=True)
    for name in ("data/analytics", "uploads", "logs", "staging/uploads", "staging/analytics", "staging/logs"):
        assert (tmp_path / name).is_dir()
    assert {one["target"] for one in folders["volumes"]} == {
        f"/folders/{name}" for name in ("data", "uploads", "logs", "staging")
    }
    assert folders["network_mode"] == "none"


# The commands


def commands_of_the_documents() -> set[str]:
    books = [ROOT / "README.md", NGINX / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(book.read_text() for book in books).replace("\\\n", " ")
    (scaled,) = re.findall(r"^alias scaled='docker compose (.*)'$", text, re.MULTILINE)
    of_an_alias = re.findall(r"^scaled (.*)$", text, re.MULTILINE)
    found = re.findall(r"(?<!')docker compose (-[^`|&;]*?)(?=`|&&|;|$)", text, re.MULTILINE)
    return {*(" ".join(command.split()) for command in found), *(f"{scaled} {command}" for command in of_an_alias)}


def commands_of_deploy_sh() -> set[str]:
    steps = [step for step in (*STEPS["compose"], *BESIDE["compose"], *BACK["compose"]) if step.startswith("compose ")]
    return {re.sub(r"\S+/(deploy/compose)", r"\1", step.replace("compose ", "--file ", 1)) for step in steps}


def test_compose_understands_every_command_of_the_documents_and_of_deploy_sh(tmp_path: Path) -> None:
    """As far as it comes without an engine: options, files, services. Also where a compose.yaml lies."""
    (env_file := tmp_path / ".env").write_text(
        "".join(f"{name}={value}\n" for name, value in (TWO | FOR_SCALE).items())
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/nobody"}
    commands = commands_of_the_documents() | commands_of_deploy_sh()
    assert len(commands) > 20
    for command in commands:
        words = [str(env_file) if word.endswith(".env") else word for word in command.split()]
        words = [str(ROOT / word) if word.startswith("deploy/compose") else word for word in words]
        if "--project-name" not in words and "-p" not in words and "--env-file" not in words:
            words = ["--env-file", str(env_file), *words]
        ran = subprocess.run(
            [program(), *words], cwd=ROOT / "deploy", env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Cannot connect to the Docker daemon" in ran.stderr, f"{command}: {ran.stderr}"


def test_what_a_deployment_waits_for_has_a_health_check(services: dict[str, Any]) -> None:
    """Compose fails where it should wait for a service that has none."""
    waited_for = {command.rpartition(" ")[2] for command in commands_of_deploy_sh() if " --wait " in command}
    assert waited_for == {"nginx"}
    assert all("test" in services[name]["healthcheck"] for name in waited_for)

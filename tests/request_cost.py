"""What limits, logs and metrics cost: CPU of a server a request, with them and without, in one run.

    uv run python -m tests.request_cost [--rounds 20] [--requests 1500] [--path /api/v1/influencers] [ON=value …]

Two gunicorns of one process each serve copies of one database. Rounds of requests go to one and the other in turn (and
in turn first), on one connection, so that other work on the machine hurts both alike. A round's CPU is what the kernel
says of the server's processes; the ratio is the median of the rounds' ratios. OFF and ON below are the two settings.
"""

import argparse
import http.client
import os
import statistics
import tempfile
from pathlib import Path

import django

os.environ |= {
    "ENV_FILE": "",
    "DJANGO_SETTINGS_MODULE": "yral_chat.settings",
    "ENVIRONMENT": "development",
    "JWT_SECRET_KEY": "only-for-the-measure-jwt-Vr4mKx9Tq2Lz7Bw",  # the servers get it too, and are in production
    "LOG_FILE": "",
}
django.setup()

from tests.servers import Server, copied, environment, free_port, manage, start, wait_until_it_answers  # noqa: E402

OFF = {
    "RATE_LIMIT_PER_MINUTE": "0",
    "RATE_LIMIT_PER_HOUR": "0",
    "LOG_LEVEL": "ERROR",
    "LOG_FILE": "",
    "METRICS_ENABLED": "false",
}
ON = {"LOG_LEVEL": "INFO", "METRICS_ENABLED": "true"}
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of the process and its children, to a nanosecond where the scheduler tells it."""
    total = 0.0
    for task in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in (int(task.name), parent):
                total += sum(int((thread / "schedstat").read_text().split()[0]) for thread in task.glob("task/*")) / 1e9
        except (OSError, ValueError):
            continue
    return total


def round_of(server: Server, path: str, count: int) -> float:
    """Microseconds of CPU a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    before = cpu_seconds(server.process.pid)
    for _ in range(count):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
    used = cpu_seconds(server.process.pid) - before
    connection.close()
    return used / count * 1e6


def served(folder: Path, name: str, settings: dict[str, str]) -> Server:
    copied(folder, folder / name)
    common = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "8", "MALLOC_ARENA_MAX": "2"}
    env = environment(folder / name, "http://127.0.0.1:9", free_port(), **common, **settings)
    server = start("gunicorn", env, folder / name)
    wait_until_it_answers(server)
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--path", default="/api/v1/influencers")
    parser.add_argument("settings", nargs="*", help="more settings of the server with everything on: NAME=value")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder, "http://127.0.0.1:9", 9)
        manage(env, "migrate", "--verbosity", "0")
        manage(env, "seed_personas")
        extra = dict(setting.partition("=")[::2] for setting in given.settings)
        servers = [
            served(folder, "off", OFF),
            served(folder, "on", {**ON, "LOG_FILE": f"{folder}/on/chat.log", **extra}),
        ]
        try:
            for server in servers:
                round_of(server, given.path, given.requests)
            rounds = []
            for number in range(given.rounds):
                order = servers if number % 2 else servers[::-1]
                used = {server.port: round_of(server, given.path, given.requests) for server in order}
                rounds.append([used[server.port] for server in servers])
        finally:
            for server in servers:
                server.stop()
    ratios = [on / off for off, on in rounds]
    quarters = statistics.quantiles(ratios, n=4)
    off, on = (statistics.median(values) for values in zip(*rounds, strict=True))
    print(f"off {off:.0f} µs, on {on:.0f} µs")
    print(f"ratio {statistics.median(ratios):.3f} (middle half {quarters[0]:.3f} to {quarters[2]:.3f})")


if __name__ == "__main__":
    main()

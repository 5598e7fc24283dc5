"""systemctl of a machine without systemd: it really starts and stops what the units say, and waits until it's ready.

Of a unit it obeys Type (notify, oneshot), ExecStart, Environment, StateDirectory, LoadCredential, TimeoutStopSec, the
instance %i, and common.conf for the jobs. Units and processes are known by the folder in STAND_INS.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_INS"])
Unit = dict[str, list[str]]


def unit(name: str) -> Unit:
    """Its lines and those of the drop-in, which come after."""
    template, _, instance = name.removesuffix(".service").partition("@")
    files = [FOLDER / "units" / f"{template}@.service"]
    if template != "yral-ai-chat":
        files += sorted((FOLDER / "units/yral-ai-chat-.service.d").glob("*.conf"))
    lines: Unit = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", "\n".join(file.read_text() for file in files), re.MULTILINE):
        lines.setdefault(key, []).append(value.replace("%i", instance))
    return lines


def environment(name: str, lines: Unit) -> dict[str, str]:
    """Nothing of ours but what a unit gets."""
    made = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for line in lines["Environment"]:
        made |= dict(re.findall(r"(\w+)=(\S*)", line))
    (FOLDER / "var" / lines["StateDirectory"][0]).mkdir(parents=True, exist_ok=True)
    prefix, _, source = lines["LoadCredential"][0].partition(":")
    credentials = FOLDER / "credentials" / name
    shutil.rmtree(credentials, ignore_errors=True)
    credentials.mkdir(parents=True)
    for file in Path(source).iterdir():
        shutil.copy(file, credentials / f"{prefix}_{file.name}")
    return made | {"CREDENTIALS_DIRECTORY": str(credentials)}


def launch(name: str, command: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """As systemd does: no signal ignored, a session of its own, what it says to the journal."""
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    with (FOLDER / f"journal-{name}").open("ab") as journal:
        return subprocess.Popen(
            command.split(), env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=journal, stderr=journal,
            start_new_session=True,
        )  # fmt: skip


def start(name: str) -> int:
    lines = unit(name)
    env = environment(name, lines)
    if lines["Type"] == ["oneshot"]:
        return max(launch(name, command, env).wait() for command in lines["ExecStart"])
    assert lines["Type"] == ["notify"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        address = FOLDER / "notify"
        address.unlink(missing_ok=True)
        ready.bind(str(address))
        ready.settimeout(0.1)
        process = launch(name, lines["ExecStart"][0], env | {"NOTIFY_SOCKET": str(address)})
        pid_file(name).write_text(str(process.pid))
        while process.poll() is None:
            try:
                if b"READY=1" in ready.recv(4096):
                    return 0
            except TimeoutError:
                continue
    return 1


def pid_file(name: str) -> Path:
    return FOLDER / f"pid-{name}"


def runs(name: str) -> int:
    """The id of its first process, or 0."""
    try:
        pid = int(pid_file(name).read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state == "Z" else pid


def stop(name: str) -> int:
    """TERM for the first process; after the time that the unit gives, KILL for all."""
    if not (pid := runs(name)):
        return 0
    assert unit(name)["KillMode"] == ["mixed"]
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + float(unit(name)["TimeoutStopSec"][0])
    while runs(name) and time.monotonic() < until:
        time.sleep(0.05)
    if runs(name):
        os.killpg(pid, signal.SIGKILL)
    return 0


def main() -> int:
    what, name = sys.argv[1], sys.argv[-1]
    if what == "is-active":
        return 0 if runs(name) else 3
    return {"start": start, "stop": stop}[what](name)


if __name__ == "__main__":
    sys.exit(main())

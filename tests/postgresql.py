"""A PostgreSQL of the tests' own, which may be stopped and killed, and is only reached by TLS."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import free_port

PASSWORD = "of-the-tests-cluster"


@dataclass
class Cluster:
    programs: Path
    folder: Path
    port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    def url(self, name: str = "postgres", **options: str) -> str:
        options = {"sslmode": "verify-full", "sslrootcert": str(self.certificate), **options}
        query = "&".join(f"{option}={value}" for option, value in options.items() if value)
        return f"postgres://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}?{query}"

    def make(self) -> None:
        self._run(self.programs / "initdb", "-D", "data", "-U", "postgres", "--no-sync", f"--pwfile={self._password()}")
        make_certificate(self.folder)
        if os.geteuid() == 0:
            shutil.chown(self.folder / "server.key", "postgres")
        (self.folder / "data/pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")

    def _password(self) -> Path:
        path = self.folder / "password"
        path.write_text(PASSWORD)
        return path

    def start(self) -> None:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # the machine itself stays on
            "ssl": "on",
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self.folder / "server.key",
        }
        given = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        self._run(self.programs / "pg_ctl", "-D", "data", "-l", "log", "-w", "-o", given, "start")

    def stop(self, how: str) -> None:
        """`fast`: after its clients are thrown out; `immediate`: as if it crashed."""
        self._run(self.programs / "pg_ctl", "-D", "data", "-w", "-m", how, "stop")

    def _run(self, *command: str | Path) -> None:
        """It refuses to run as root."""
        user = "postgres" if os.geteuid() == 0 else None
        with (self.folder / "output").open("ab") as output:  # a pipe would stay open with the server
            subprocess.run(
                command,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                timeout=60,
                check=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )


def make_certificate(folder: Path) -> Path:
    """Signed by itself, for 127.0.0.1; its key is beside it."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ("openssl", "req", "-x509", "-days", "2", *key, *name, "-out", "server.crt")
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return folder / "server.crt"


@contextmanager
def running_postgresql() -> Iterator[Cluster]:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[4]))
    program = installed[-1] if installed else shutil.which("pg_ctl")
    if program is None or not shutil.which("openssl"):
        assert "CI" not in os.environ, "CI must restart a PostgreSQL: pg_ctl or openssl isn't installed."
        pytest.skip("pg_ctl or openssl isn't installed: no PostgreSQL was restarted, or reached by TLS.")
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as name:  # pytest's are root's
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", pwd.getpwnam("postgres").pw_gid)
        cluster = Cluster(Path(program).parent, folder, free_port())
        cluster.make()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop("immediate")

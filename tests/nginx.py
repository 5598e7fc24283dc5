"""A real nginx with the shipped configuration, on free ports of this machine and with a certificate of the test's."""

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import token, wait_until
from tests.scrubber import scrubber
from tests.servers import Got, free_port, listens

NGINX = configured.BASE_DIR / "deploy/nginx"
PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
HOST = "chat.example"
HERE = "127.0.0.1"
DESK = "127.0.0.5"  # where the staff sit
# As Debian's and the image's own nginx.conf, in the parts that matter, without root's folders.
AROUND = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    client_body_temp_path {folder}/temp-body;
    proxy_temp_path {folder}/temp-proxy;
    fastcgi_temp_path {folder}/temp-fastcgi;
    uwsgi_temp_path {folder}/temp-uwsgi;
    scgi_temp_path {folder}/temp-scgi;
    # Only so can a test be somebody with an IPv6 address: 127.0.0.9 says who it is.
    set_real_ip_from 127.0.0.9;
    real_ip_header X-Test-Address;
    include conf.d/*.conf;
}}
"""


def needs_nginx() -> str:
    if PROGRAM is None or shutil.which("envsubst") is None:
        assert "CI" not in os.environ, "CI must test with nginx: nginx or envsubst (gettext-base) isn't installed."
        pytest.skip("nginx or envsubst (gettext-base) isn't installed: the proxy's configuration wasn't tested.")
    return str(PROGRAM)


def render(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What deploy/nginx/render.sh says to these variables."""
    env = {"PATH": os.environ["PATH"], "PLACEHOLDER_FOLDER": str(folder / "placeholder"), **variables}
    command = ["sh", str(NGINX / "render.sh"), str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@dataclass
class Nginx:
    folder: Path
    http_port: int
    https_port: int

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """A client's: it believes the test's certificate and no other."""
        context = ssl.create_default_context(cafile=self.folder / "tls/fullchain.pem")
        context.set_alpn_protocols(["http/1.1"])
        return context

    @property
    def log(self) -> str:
        return (self.folder / "access.log").read_text()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        user: str | None = None,
        source: str = HERE,
        **headers: str,
    ) -> Got:
        connection, response = self.request(method, path, body, user, source, **headers)
        with contextlib.closing(connection):
            got = Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        scrubber.look_at_answer(got.content, f"nginx's answer to {path}")
        return got

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        user: str | None = None,
        source: str = HERE,
        **headers: str,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Over https, from that address of this machine; who gets the connection closes it."""
        connection = self.connection(source)
        sent = {"Host": HOST} | ({"Authorization": f"Bearer {token(user)}"} if user else {})
        try:
            connection.request(method, path, body, sent | headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def connection(self, source: str = HERE) -> http.client.HTTPConnection:
        plain = socket.create_connection(("127.0.0.1", self.https_port), timeout=60, source_address=(source, 0))
        connection = http.client.HTTPConnection("127.0.0.1", self.https_port, timeout=60)
        connection.sock = self.tls.wrap_socket(plain, server_hostname=HOST)
        return connection

    def plainly(self, method: str, path: str, host: str = HOST, body: bytes | None = None) -> Got:
        """Over http."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Host": host})
            response = connection.getresponse()
            return Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def certificate(folder: Path) -> dict[str, str]:
    """For HOST, signed by itself."""
    folder.mkdir()
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    names = ("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key))
    subprocess.run(["openssl", "req", "-x509", *made, "-out", str(chain), *names], check=True, capture_output=True)
    return {"TLS_CERTIFICATE": str(chain), "TLS_KEY": str(key)}


@contextmanager
def running_nginx(folder: Path, **variables: str) -> Iterator[Nginx]:
    program = needs_nginx()
    nginx = Nginx(folder, free_port(), free_port())
    (folder / "acme").mkdir()
    rendered = render(
        folder,
        **{
            "SERVER_NAME": HOST,
            "LISTEN_HTTP": str(nginx.http_port),
            "LISTEN_HTTPS": str(nginx.https_port),
            "HTTPS_PORT": str(nginx.https_port),
            "NGINX_LOG_FOLDER": str(folder),
            "ACME_FOLDER": str(folder / "acme"),
            "STAFF_NETWORKS": DESK,
            **certificate(folder / "tls"),
            **variables,
        },
    )
    assert rendered.returncode == 0, rendered.stderr
    user = "user root;" if os.geteuid() == 0 else ""  # whom the test's folders are open to
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user))
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"], start_new_session=True)
    try:
        wait_until(lambda: listens(nginx.https_port), "nginx doesn't listen", 30)
        yield nginx
    finally:
        process.terminate()
        process.wait(10)
    said = (folder / "error.log").read_text()
    assert "[emerg]" not in said, said
    assert "[alert]" not in said, said
    scrubber.look_at(said + nginx.log, "nginx's log")

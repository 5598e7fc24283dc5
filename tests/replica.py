"""A service with a copy of its SQLite file: the real entrypoint and Litestream; the bucket is a real HTTP server."""

import logging
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from tests.servers import Server, children, environment, free_port, python, start, wait_until_it_answers
from yral_chat import replication

BUCKET = "replica"
KEYS = {"LITESTREAM_ACCESS_KEY_ID": "litestream-canary-id", "LITESTREAM_SECRET_ACCESS_KEY": "litestream-canary-secret"}


class Bucket:
    """An S3 server that can be out of reach for a while; what is in it stays."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
        self.port = free_port()
        self.up()
        self.store = boto3.resource(
            "s3", endpoint_url=self.url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
        )
        self.store.Bucket(BUCKET).create()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def down(self) -> None:
        self.server.stop()

    def has_all_of(self, env: dict[str, str]) -> bool:
        """What Litestream has taken from the database until now."""
        taken = file_of(env).with_name(".chat.db-litestream").glob("ltx/0/*.ltx")
        there = self.store.Bucket(BUCKET).objects.filter(Prefix=f"{env['LITESTREAM_PATH']}/0000/")
        newest = max((one.key.rpartition("/")[2] for one in there), default="")
        return "" < max((file.name for file in taken), default="") <= newest

    def close(self) -> None:
        self.store.meta.client.close()
        self.server.stop()
        logging.getLogger("werkzeug").setLevel(logging.NOTSET)


def variables(
    folder: Path, bucket: Bucket, path: str, model: str = "http://127.0.0.1:9", **changed: str
) -> dict[str, str]:
    (folder / "disk").mkdir(parents=True, exist_ok=True)
    return environment(folder / "disk", model, free_port()) | {
        "ENABLE_LITESTREAM": "true",
        "LITESTREAM_BUCKET": BUCKET,
        "LITESTREAM_PATH": path,
        "LITESTREAM_ENDPOINT": bucket.url,
        **KEYS,
        **changed,
    }


def manage(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """How it ended, and what it said."""
    run = python(env, "-W", "ignore", "manage.py", *arguments)
    return run.returncode, run.stdout + run.stderr


def file_of(env: dict[str, str]) -> Path:
    return Path(env["DATABASE_URL"].removeprefix("sqlite:///"))


def contents(path: Path) -> set[str]:
    """What users said, in a database that nobody serves. Its log stays as it is."""
    with replication.opened(path) as connection:
        return {text for (text,) in connection.execute("SELECT content FROM messages WHERE role = 'user'")}


def serve(env: dict[str, str], folder: Path) -> Server:
    server = start("entrypoint", env, folder)
    wait_until_it_answers(server)
    return server


def litestream_of(server: Server) -> int:
    (found,) = children(server, "-f", "litestream replicate")
    return found

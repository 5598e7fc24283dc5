"""Many streams at once against a running service: python -m tests.stream_load http://127.0.0.1:8000 500

Each is a user of its own. Prints one JSON object: how many ended in `done`, and the times to the first token and the
end, in seconds. Tokens are signed with JWT_SECRET_KEY of the environment.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import jwt

Answer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def request(address: Any, method: str, path: str, token: str, body: Any = None) -> Answer:
    """After the head of the answer. Who lets go of the writer closes the connection."""
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    data = json.dumps(body).encode() if body is not None else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
    )
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    if status >= 300:
        raise RuntimeError(f"{method} {path} answered {status}: {(await reader.read())[:300]!r}")
    return reader, writer


async def body_of(answer: Answer) -> Any:
    raw = await answer[0].read()
    answer[1].close()
    return json.loads(raw[raw.index(b"{") : raw.rindex(b"}") + 1])


async def one(address: Any, influencer: str, start: asyncio.Event) -> tuple[float, float, str]:
    user, now = f"stream-{uuid.uuid4().hex}", int(time.time())
    claims = {"sub": user, "iss": "https://auth.yral.com", "iat": now, "exp": now + 3600}
    token = jwt.encode(claims, os.environ["JWT_SECRET_KEY"], algorithm="HS256")
    chats = "/api/v1/chat/conversations"
    opened = await request(address, "POST", chats, token, {"influencer_id": influencer})
    conversation = (await body_of(opened))["id"]
    await start.wait()
    began, first, last = time.monotonic(), 0.0, "nothing"
    body = {"message_type": "text", "content": "Tell me a long story"}
    reader, writer = await request(address, "POST", f"{chats}/{conversation}/messages/stream", token, body)
    async for line in reader:
        if line.startswith(b"event: "):
            last = line.split()[1].decode()
            first = first or time.monotonic() - began
    writer.close()
    return first, time.monotonic() - began, last


async def main(base: str, count: int) -> dict[str, Any]:
    address, start = urlsplit(base), asyncio.Event()
    influencers = (await body_of(await request(address, "GET", "/api/v1/influencers", "")))["influencers"]
    influencer = next(one["id"] for one in influencers if one["is_active"] == "active")
    runs = [asyncio.create_task(one(address, influencer, start)) for _ in range(count)]
    await asyncio.sleep(3 + count / 100)  # till the conversations are open
    start.set()
    ended = await asyncio.gather(*runs, return_exceptions=True)
    good = [run for run in ended if isinstance(run, tuple) and run[2] == "done"]
    report: dict[str, Any] = {"streams": count, "done": len(good)}
    for name, column in (("first_token", 0), ("end", 1)):
        times = sorted(float(run[column]) for run in good) or [0.0]
        report[name] = {"p50": statistics.median(times), "p95": times[int(len(times) * 0.95)], "max": times[-1]}
    report["others"] = [repr(run)[:200] for run in ended if run not in good][:3]
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("count", type=int, nargs="?", default=500)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(main(arguments.base_url, arguments.count))))

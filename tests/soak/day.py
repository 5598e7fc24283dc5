"""An ordinary day in ten minutes, as the service is deployed on one machine: the entrypoint, two processes of gunicorn
on SQLite, and Litestream, which copies to a bucket. Nothing fails, the model takes two seconds, and at the end each
thing that isn't as it should be is a sentence."""

import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from django.db import connection

from tests.conftest import wait_until
from tests.fake_gemini import FakeGemini
from tests.replica import Bucket, file_of, manage, serve, variables
from tests.scrubber import scrubber
from tests.servers import Server
from tests.soak import checks
from tests.soak.fleet import Servers
from tests.soak.ledger import Ledger
from tests.soak.run import TO_FINISH, conversations_of, listed, send_what_is_left, settle, show, verdict, watch
from tests.soak.times import MB, Gauge, Sample, Times, growth, steady_growth
from tests.soak.visitors import Thinking, Visitor
from yral_chat import replication

MODEL_SECONDS = 2.0
ALONE, PAIRS = 36, 2  # users with one phone, and users with two, who delete their conversations now and then
WAL_MB = 64
WARM_UP = 0.25  # of the time, in which caches fill up
STEADY_MB = 2.0  # a minute by which the service may grow after that, steadily
STEPS = 0.1  # of its size, by which it may have grown in all
ENOUGH = 5.0  # minutes, below which memory can't be judged
ALWAYS = {"send", "stream, to its end", "upload a picture", "list conversations", "page of messages"}
TO_STOP = 60.0  # seconds
FAILED = re.compile(r'"status": ?5\d\d|"level": ?"(?:error|critical)"')
SAID = re.compile(r"note-[0-9a-f]{12} ")


class Deployment:
    """Of one machine. `servers` is the one."""

    def __init__(self, folder: Path, bucket: Bucket, model_url: str) -> None:
        self.folder = folder / "server-0"
        self.folder.mkdir()
        changed = {
            "MEDIA_UPLOAD_DIR": str(folder / "uploads"),
            "PICTURE_CACHE_MB": "2",
        }  # full within the first minutes
        self.env = variables(folder, bucket, "soak", model_url, **changed)
        self.file = file_of(self.env)
        for command in ("prepare_database", "seed_personas"):
            code, told = manage(self.env, command)
            assert code == 0, told
        self.servers: list[Server] = []

    def start(self) -> None:
        self.servers = [serve(self.env, self.folder)]

    @property
    def server(self) -> Server:
        return self.servers[0]

    def any(self, rng: random.Random) -> Server:
        return self.server

    def logs(self) -> list[tuple[Path, str]]:
        return [(self.server.log_path, self.server.log)]

    def end(self) -> Iterator[str]:
        """As an orchestrator does; Litestream brings the last frames to the bucket."""
        connection.close()
        self.server.process.send_signal(signal.SIGTERM)
        code = self.server.process.wait(TO_STOP)
        if code:
            yield f"the entrypoint ended with {code}"

    def stop(self) -> None:
        """What was said is looked for by its pattern: thousands of texts in this log take long."""
        for server in self.servers:
            server.said.clear()
            scrubber.said.clear()
            server.stop()


def soak(*, minutes: float, seed: int, folder: Path) -> int:
    """0 if everything is as it should be."""
    ledger, times, thinking = Ledger(), Times(), Thinking(seed, MODEL_SECONDS)
    bucket, model = Bucket(), FakeGemini(chooses=thinking)
    deployment = Deployment(folder, bucket, model.url)
    print(f"An ordinary day in {minutes:g} minutes, seed {seed}: two processes on SQLite, with Litestream", flush=True)
    try:
        deployment.start()
        phones = everybody(deployment, ledger, times, seed)
        with Gauge(deployment.server.process.pid, replication.beside(deployment.file, "-wal")) as gauge:
            traffic(minutes, phones, model)
        settle(ledger)
        resent = send_what_is_left(deployment, ledger, seed)
        settle(ledger)
        findings = verdict(deployment, ledger)
        findings["the_copy_can_be_restored"] = list(drilled(deployment, bucket))
        findings["the_service_ends_when_it_is_told_to"] = list(deployment.end())
        findings["the_copy_has_everything"] = list(restored(deployment, folder / "restored.db"))
    finally:
        deployment.stop()
        model.stop()
        bucket.close()
    findings["no_trouble_in_the_logs"] = list(checks.trouble_in_the_logs(deployment))
    findings["no_failure_and_nothing_private_in_the_logs"] = list(failures(deployment.server.log))
    findings["sqlite_s_log_stays_small"] = list(too_large(gauge.largest_wal))
    findings["memory_is_flat"] = list(grown(gauge.memory, minutes))
    findings["everything_was_done"] = [f"nobody did this: {kind}" for kind in sorted(ALWAYS - times.seconds.keys())]
    return report(ledger, times, gauge, thinking.seen, resent, minutes, findings)


def everybody(fleet: Servers, ledger: Ledger, times: Times, seed: int) -> list[Visitor]:
    phones = []
    for name in [*[f"alone-{n}" for n in range(ALONE)], *[f"pair-{n}" for n in range(PAIRS)]]:
        pair = name.startswith("pair")
        chats = conversations_of(fleet, name, may_vanish=pair)
        phones += [Visitor(f"{name}-{n}", seed, chats, fleet, ledger, times) for n in range(1 + pair)]
    return phones


def traffic(minutes: float, phones: list[Visitor], model: FakeGemini) -> None:
    """What a phone's thread raises is raised here. What the model was asked is forgotten: it holds pictures."""
    with ThreadPoolExecutor(len(phones)) as pool:
        lives = [pool.submit(phone.live) for phone in phones]
        until = time.monotonic() + 60 * minutes
        try:
            while (left := until - time.monotonic()) > 0 and not any(life.done() for life in lives):
                watch(min(left, 5) / 60, lives)
                model.requests.clear()
        finally:
            for phone in phones:
                phone.off.set()
        for life in lives:
            life.result(TO_FINISH)


# What must be true


def drilled(deployment: Deployment, bucket: Bucket) -> Iterator[str]:
    """While the service runs, and nobody writes."""
    time.sleep(2)
    wait_until(lambda: bucket.has_all_of(deployment.env), "the copy doesn't catch up", 60)
    code, told = manage(deployment.env, "restore_drill")
    done = replication.last_drill(deployment.file)
    if code or not done or not done["ok"]:
        yield f"the drill ended with {code}: {told}"
    elif done["lacks"]:
        yield f"the copy lacks {done['lacks']}"
    replica = deployment.server.call("GET", "/health?deep=1", user=None).json()["services"]["replica"]
    if replica["status"] != "up":
        yield f"/health?deep=1 says of the replica: {replica}"


def restored(deployment: Deployment, copy: Path) -> Iterator[str]:
    """After the end of the service, by the operator's command."""
    yield from (f"the database: {problem}" for problem in replication.examine(deployment.file).problems)
    code, told = manage(deployment.env, "restore", "--output", str(copy))
    if code:
        yield f"the copy can't be restored: {told}"
    else:
        yield from differences(deployment.file, copy)


def differences(database: Path, copy: Path) -> Iterator[str]:
    """Tables whose rows aren't the same in both."""
    with replication.opened(database) as one, replication.opened(copy) as other:
        for table in sorted({*replication.tables(one), *replication.tables(other)}):
            if table not in replication.tables(one) or table not in replication.tables(other):
                yield f"only one of both has the table {table}"
                continue
            mine, its = (Counter(base.execute(f'SELECT * FROM "{table}"')) for base in (one, other))  # noqa: S608
            if mine != its:
                yield f"{table}: the copy lacks {(mine - its).total()} rows and has {(its - mine).total()} others"


def failures(log: str) -> Iterator[str]:
    lines = [line for line in log.splitlines() if FAILED.search(line)]
    if lines:
        yield f"{len(lines)} lines tell of a failure, the first: {lines[0][:1000]}"
    if said := SAID.search(log):
        yield f"a message's text: {log[max(0, said.start() - 300) : said.end() + 300]}"
    yield from scrubber.take()[:5]


def too_large(largest_wal: int) -> Iterator[str]:
    if largest_wal > WAL_MB * MB:
        yield f"it had {largest_wal / MB:.1f} MB; {WAL_MB} are the limit"


def grown(memory: list[Sample], minutes: float) -> Iterator[str]:
    if minutes < ENOUGH:
        return
    warm = since_warm(memory, minutes)
    try:
        rate = steady_growth(warm) / MB
    except ValueError as exc:
        yield f"it can't be judged: {exc}"
        return
    if rate > STEADY_MB:
        yield f"it grew by {rate:.2f} MB a minute after the warm-up, steadily; {STEADY_MB:g} are the limit"
    first, last = (statistics.median(one.service / MB for one in some) for some in (warm[:10], warm[-10:]))
    if last > first * (1 + STEPS):
        yield f"it grew from {first:.0f} to {last:.0f} MB after the warm-up; {STEPS:.0%} are the limit"


def since_warm(memory: list[Sample], minutes: float) -> list[Sample]:
    return [one for one in memory if one.at >= 60 * minutes * WARM_UP]


# The report


def report(
    ledger: Ledger,
    times: Times,
    gauge: Gauge,
    asked: Counter[str],
    resent: Counter[str],
    minutes: float,
    findings: dict[str, list[str]],
) -> int:
    print()
    for what in sorted({what for what, _ in ledger.counts}):
        print(f"{what:14} {listed(Counter({key[1]: n for key, n in ledger.counts.items() if key[0] == what}))}")
    acknowledged = f"{len(ledger.questions)} questions and {len(ledger.answers)} answers"
    print(f"Messages       {len(ledger.notes)}; acknowledged: {acknowledged}; resent at the end: {listed(resent)}")
    print(f"The model      {listed(asked)}")
    print(f"SQLite's log   {gauge.largest_wal / MB:.1f} MB at most")
    print(f"Memory         {memory_in_numbers(gauge.memory, minutes)}\n")
    print("\n".join(times.table()), end="\n\n")
    found = show(findings)
    print(f"\n{found} things are wrong." if found else "\nEverything is as it should be.")
    return 1 if found else 0


def memory_in_numbers(memory: list[Sample], minutes: float) -> str:
    if not memory:
        return "not seen"
    by_minute = {int(one.at // 60): one for one in reversed(memory)}
    service = ", ".join(f"{by_minute[minute].service / MB:.0f}" for minute in sorted(by_minute))
    peak = max(one.litestream for one in memory) / MB
    told = f"{service} and {memory[-1].service / MB:.0f} MB, minute by minute; Litestream {peak:.0f} MB at most"
    if minutes < ENOUGH:
        return f"{told}; under {ENOUGH:g} minutes it isn't judged"
    warm = since_warm(memory, minutes)
    try:
        steadily, in_all = steady_growth(warm) / MB, growth(warm) / MB
    except ValueError as exc:
        return f"{told}; {exc}"
    return f"{told}; after the warm-up {steadily:+.2f} MB a minute steadily, {in_all:+.2f} with its steps"

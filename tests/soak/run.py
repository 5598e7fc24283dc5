"""The soak from its start to its report."""

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from django.db import connection

from conversations.models import AlternativeAnswer, Turn
from tests.fake_gemini import FakeGemini
from tests.soak import checks
from tests.soak.fleet import Fleet, Killer, Servers
from tests.soak.ledger import PEACE, Chat, Ledger, Note
from tests.soak.phones import OVER, Phone
from tests.soak.weather import Weather

TO_SETTLE = 20.0  # seconds: longer than a lock of a dead process lasts
TO_FINISH = 90.0  # seconds in which every phone must be done with what it was at
RESENDS = 4  # of one message at the end; a circuit breaker may be open still
SHOWN = 40  # of the wrong things


def soak(*, minutes: float, seed: int, folder: Path, database_url: str, uvicorn: bool) -> int:
    """0 if nothing was lost."""
    weather, ledger = Weather(seed), Ledger()
    model = FakeGemini(chooses=weather)
    fleet = Fleet(folder, database_url, model.url, uvicorn=uvicorn)
    killer = Killer(fleet, ledger, seed)
    servers = f"{' and '.join(fleet.kinds)} on {connection.vendor}"
    print(f"Soaking for {minutes:g} minutes, seed {seed}: {servers}", flush=True)
    try:
        fleet.start()
        phones = everybody(fleet, ledger, seed)
        rough_time(minutes, phones, killer)
        weather.calm = True
        settled = settle(ledger)
        resent = send_what_is_left(fleet, ledger, seed)
        settle(ledger)
        findings = verdict(fleet, ledger)
    finally:
        fleet.stop()
        model.stop()
    findings["no_trouble_in_the_logs"] = list(checks.trouble_in_the_logs(fleet))
    return report(ledger, killer, weather, findings, settled, resent)


def everybody(fleet: Fleet, ledger: Ledger, seed: int) -> list[Phone]:
    """12 who are alone in their conversations, 8 who share theirs by fours, and 4 who delete theirs now and then."""
    alone = [[f"alone-{n}"] for n in range(12)]
    fours = [[f"four-{n}"] * 4 for n in range(2)]
    pairs = [[f"pair-{n}"] * 2 for n in range(2)]
    phones = []
    for names in (*alone, *fours, *pairs):
        chats = conversations_of(fleet, names[0], shared=len(names) == 4, may_vanish=len(names) == 2)
        phones += [Phone(f"{name}-{n}", seed, chats, fleet, ledger) for n, name in enumerate(names)]
    return phones


def conversations_of(fleet: Servers, user: str, **kind: bool) -> list[Chat]:
    listed = fleet.servers[0].call("GET", "/api/v1/influencers", user=None).json()["influencers"]
    active = [one["id"] for one in listed if one["is_active"] == "active"][:2]
    return [Chat(fleet.servers[0].open(one, user), user, one, **kind) for one in active]


def rough_time(minutes: float, phones: list[Phone], killer: Killer) -> None:
    """Till all phones are off; those that wait for an answer are cut off by the last kills. What a thread raises is
    raised here."""
    with ThreadPoolExecutor(len(phones) + 1) as pool:
        kills = pool.submit(killer.rage)
        lives = [pool.submit(phone.live) for phone in phones]
        try:
            watch(minutes, [kills, *lives])
        finally:
            for off in (killer.off, *(phone.off for phone in phones)):
                off.set()
        kills.result(TO_FINISH)
        killer.fleet.last_blow()
        until = time.monotonic() + TO_FINISH
        for life in lives:
            life.result(max(1.0, until - time.monotonic()))


def watch(minutes: float, futures: list[Future[None]]) -> None:
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until and not any(future.done() for future in futures):
        time.sleep(0.5)


def settle(ledger: Ledger) -> float:
    """Wait until no turn is under way; how long that took."""
    began = time.monotonic()
    while (left := Turn.objects.under_way().count()) and time.monotonic() < began + TO_SETTLE:
        time.sleep(0.25)
    if left:
        stuck = list(Turn.objects.under_way().values_list("pk", "state", "created_at", "conversation__running_until"))
        ledger.complain(f"{left} turns are under way after {TO_SETTLE:g} s of peace: {stuck[:5]}", PEACE)
    return time.monotonic() - began


def send_what_is_left(fleet: Servers, ledger: Ledger, seed: int) -> Counter[str]:
    """Each message that nobody acknowledged so far must be answered now. Without a key, a conversation's last one is
    continued only while it is the last."""
    left: dict[str, list[Note]] = {}
    for note in sorted(ledger.notes, key=lambda note: note.has_key or not note.careful):
        if not note.over and not note.chat.may_vanish:
            left.setdefault(note.chat.id, []).append(note)
    with ThreadPoolExecutor(6) as pool:
        outcomes = pool.map(lambda notes: [insist(note, fleet, ledger, seed) for note in notes], left.values())
        return Counter(outcome for chat in outcomes for outcome in chat)


def insist(note: Note, fleet: Servers, ledger: Ledger, seed: int) -> str:
    phone = Phone(f"last-{note.content}", seed, [note.chat], fleet, ledger)
    for number in range(1, RESENDS + 1):
        if note.is_stored_once and not note.has_key and what_became_of(note, phone) in OVER:
            return "was answered"
        outcome = phone.send(note)
        if outcome == "answered":
            return f"answered at attempt {number}"
        if outcome != "down":
            break
        time.sleep(5)  # as Retry-After says
    ledger.complain(f"{note.content!r} ({note.question} in {note.chat.id}) is {outcome} in the end", PEACE)
    return outcome


def what_became_of(note: Note, phone: Phone) -> str:
    outcome = "left"
    while outcome == "left":  # phones hang up now and then
        outcome = phone.come_back(note)
    return outcome


def verdict(fleet: Servers, ledger: Ledger) -> dict[str, list[str]]:
    facts = checks.Facts.read()
    findings = {check.__name__: list(check(facts, ledger)) for check in checks.CHECKS}
    findings["the_api_says_the_same"] = list(checks.what_the_api_says_differently(facts, fleet.servers[0]))
    return findings | ledger.wrong


def report(
    ledger: Ledger,
    killer: Killer,
    weather: Weather,
    findings: dict[str, list[str]],
    settled: float,
    resent: Counter[str],
) -> int:
    print(f"\nDone to them   {listed(killer.done)}")
    print(f"The model      {listed(weather.seen)}")
    for what in sorted({what for what, _ in ledger.counts}):
        print(f"{what:14} {listed(Counter({key[1]: n for key, n in ledger.counts.items() if key[0] == what}))}")
    acknowledged = f"{len(ledger.questions)} questions and {len(ledger.answers)} answers"
    print(f"Messages       {len(ledger.notes)}; acknowledged: {acknowledged}")
    print(f"Turns          {turns_in_numbers()}")
    print(f"At the end     quiet after {settled:.1f} s; resent: {listed(resent)}\n")
    found = show(findings)
    print(f"\n{found} things are wrong." if found else "\nNothing was lost, doubled or stuck.")
    return 1 if found else 0


def show(findings: dict[str, list[str]]) -> int:
    """How many things are wrong."""
    for name, wrong in findings.items():
        print(f"{'WRONG' if wrong else 'ok':6} {name.replace('_', ' ')}{f' ({len(wrong)})' if wrong else ''}")
        for sentence in wrong[:SHOWN]:
            print(f"       - {sentence}")
    return sum(map(len, findings.values()))


def turns_in_numbers() -> str:
    turns = list(Turn.objects.values_list("state", "events_before", "attempts"))
    states = Counter(state for state, _, _ in turns)
    again = sum(before > 0 for _, before, _ in turns)
    return (
        f"{listed(states)}; {again} were taken up again, {AlternativeAnswer.objects.count()} answers replaced, "
        f"{sum(attempts for _, _, attempts in turns)} recorded calls"
    )


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"

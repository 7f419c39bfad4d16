"""Processes kept alive: restarted with back-off, refused ones left alone, stopped cleanly or killed."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tapecast.supervision import Child, Rules, Spec, Supervisor

RULES = Rules(base_s=0.02, cap_s=0.05, stop_s=5.0)


class Told:
    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.lines: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []

    def make(self, spec: Spec) -> Child:
        return Child(
            spec, os.environ, self.rules,
            lambda line: self.lines.append((spec.name, line.decode())),
            lambda words: self.notes.append((spec.name, words)),
        )  # fmt: skip


def shell(name: str, script: str) -> Spec:
    return Spec(name, ("sh", "-c", script))


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def test_what_ends_by_itself_is_started_again_and_what_is_refused_is_not() -> None:
    told = Told()

    async def scenario() -> None:
        supervisor = Supervisor(told.make)
        await supervisor.reconcile(
            [
                shell("crash", "echo here; exit 1"),
                shell("wrong", "echo usage >&2; exit 2"),
                shell("done", "printf 'no end'"),
            ]
        )
        crash = supervisor.children["crash"]
        await until(lambda: crash.restarts >= 2)
        await until(lambda: supervisor.children["done"].state == "ended")
        assert supervisor.children["wrong"].state == "refused"
        supervisor.check()
        await supervisor.stop(list(supervisor.children))
        assert supervisor.children == {}

    asyncio.run(scenario())
    assert told.lines.count(("wrong", "usage")) == 1
    assert ("done", "no end") in told.lines
    assert told.lines.count(("crash", "here")) >= 3
    assert any("exit code 1; starts again in" in words for name, words in told.notes if name == "crash")


def test_a_killed_process_is_started_again_under_its_name() -> None:
    told = Told()

    async def scenario() -> None:
        supervisor = Supervisor(told.make)
        await supervisor.reconcile([shell("a", "exec sleep 60")])
        child = supervisor.children["a"]
        await until(lambda: child.pid)
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (0, first))
        second = child.pid
        await supervisor.stop(["a"])
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)

    asyncio.run(scenario())
    assert any("SIGKILL" in words for _, words in told.notes)


def test_what_does_not_end_in_time_is_killed() -> None:
    told = Told(Rules(0.02, 0.05, stop_s=0.2))

    async def scenario() -> None:
        supervisor = Supervisor(told.make)
        await supervisor.reconcile([shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done")])
        await until(lambda: told.lines)
        await supervisor.stop(["deaf"])

    asyncio.run(scenario())
    assert "killed" in told.notes[-1][1]


def test_reconciling_touches_only_what_changed() -> None:
    told = Told()

    async def scenario() -> None:
        supervisor = Supervisor(told.make)
        await supervisor.reconcile([shell("keep", "exec sleep 60"), shell("change", "exec sleep 61")])
        await until(lambda: all(child.pid for child in supervisor.children.values()))
        kept = supervisor.children["keep"].pid
        await supervisor.reconcile([shell("keep", "exec sleep 60"), shell("change", "exec sleep 62")])
        await until(lambda: supervisor.children["change"].pid)
        assert supervisor.children["keep"].pid == kept
        assert supervisor.children["change"].spec.command[-1] == "exec sleep 62"
        await supervisor.stop(list(supervisor.children))

    asyncio.run(scenario())
    assert [words.split(",")[0] for name, words in told.notes if name == "keep"] == ["started", "stopped"]


def test_a_line_beyond_the_limit_comes_in_pieces_and_nothing_is_lost() -> None:
    told = Told()

    async def scenario() -> None:
        supervisor = Supervisor(told.make)
        await supervisor.reconcile(
            [shell("long", "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after")]
        )
        await until(lambda: supervisor.children["long"].state == "ended")

    asyncio.run(scenario())
    assert sum(len(line) for _, line in told.lines[:-1]) == 3_000_000
    assert told.lines[-1] == ("long", "after")

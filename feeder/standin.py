"""A recording as the venue: `tapecast replay` as a child that dies with this process."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from market_types.processes import dies_with_parent

READY_DEADLINE_S = 60.0


class Ready(msgspec.Struct):
    """The first line a stand-in prints, and what it answers at /_tapecast/ready."""

    venue: str
    market: str
    ws: str
    rest: str
    streams: tuple[str, ...]
    instruments: str
    protocol: str = ""


class StandInError(Exception):
    """The stand-in did not start; it said why on stderr."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the stand-in did not start: exit code {exit_code}; it says why above")
        self.exit_code = exit_code if exit_code in (1, 2) else 1


class StandIn:
    """The child process. done is set when it has played everything."""

    def __init__(self, process: asyncio.subprocess.Process, ready: Ready) -> None:
        self.ready = ready
        self.done = asyncio.Event()
        self._process = process
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        paths: Sequence[Path],
        *,
        market: str | None,
        speed: str,
        alias: int,
        faults: Path | None,
        at_end: str,
    ) -> "StandIn":
        """Start it and wait for its first line. Raises StandInError."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "tapecast",
            "replay",
            *map(str, paths),
            "--hold",
            "--speed",
            speed,
            "--at-end",
            at_end,
        ]
        for flag, value in (("--market", market), ("--alias", alias or None), ("--faults", faults)):
            if value is not None:
                command += [flag, str(value)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            preexec_fn=dies_with_parent(signal.SIGKILL), limit=16 * 2**20,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                line = await process.stdout.readline()
            ready = msgspec.json.decode(line, type=Ready)
        except (TimeoutError, msgspec.MsgspecError) as error:
            if process.returncode is None:
                process.kill()
            code = await process.wait()
            raise StandInError(code) from error
        return cls(process, ready)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if b'"done"' in line:
                self.done.set()

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(5.0):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._reader.cancel()

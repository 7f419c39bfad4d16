"""Child processes kept alive: started, started again with back-off, stopped in order. Knows no command."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from feeder.backoff import RESET_AFTER_S, Backoff
from market_types.processes import dies_with_parent

USAGE = 2  # exit code of what starting again does not mend
LINE_BYTES = 2**20
STAGGER_S = 0.1

State = Literal["running", "waiting", "ended", "refused"]


class Spec(NamedTuple):
    """One process: what it is called, and its command."""

    name: str
    command: tuple[str, ...]


class Rules(NamedTuple):
    """How to start again and how to stop."""

    base_s: float
    cap_s: float
    stop_s: float


class Child:
    """One process and its successors.

    state     running; waiting to be started again; ended with exit code 0 or because it was told to; refused:
              exit code 2, which starting again does not mend
    restarts  how often it was started again
    line      gets each line it writes, without its end
    note      is told of its starts and ends, in words
    """

    def __init__(
        self, spec: Spec, environ: Mapping[str, str], rules: Rules, line: Callable[[bytes], None],
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.spec = spec
        self.state: State = "waiting"
        self.restarts = 0
        self._environ = dict(environ)
        self._rules = rules
        self._line, self._note = line, note
        self._process: asyncio.subprocess.Process | None = None
        self._backoff = Backoff(rules.base_s, rules.cap_s)

    @property
    def pid(self) -> int:
        """Return the number of the running process, 0 = none runs."""
        return self._process.pid if self._process is not None and self.state == "running" else 0

    async def run(self) -> None:
        """Keep it running until it ends with 0 or 2, or until this is cancelled, which stops it."""
        try:
            while True:
                begun_s = time.monotonic()
                code = await self._once()
                if code in (0, USAGE):
                    self.state = "ended" if code == 0 else "refused"
                    self._note("ended" if code == 0 else "refused to start; not started again until mended")
                    return
                if time.monotonic() - begun_s >= RESET_AFTER_S:
                    self._backoff.reset()
                delay_s = self._backoff.next()
                self.state = "waiting"
                self._note(f"{_end_in_words(code)}; starts again in {delay_s:.1f} s")
                await asyncio.sleep(delay_s)
                self.restarts += 1
        finally:
            await self._stop()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the running process."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _once(self) -> int:
        process = self._process = await asyncio.create_subprocess_exec(
            *self.spec.command, env=self._environ, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, limit=LINE_BYTES,
            start_new_session=True,  # a Ctrl-C in the terminal reaches it through us, in the right order
            preexec_fn=dies_with_parent(signal.SIGTERM),
        )  # fmt: skip
        self.state = "running"
        self._note(f"started, process {process.pid}")
        await self._read(process)
        return await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what it writes, to the end; of a line beyond 1 MiB what fits."""
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    self._line(end.partial)
                return
            except asyncio.LimitOverrunError as long:
                line = await process.stdout.readexactly(long.consumed)
            self._line(line.rstrip(b"\n"))

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        reading = asyncio.create_task(self._read(process))
        try:
            async with asyncio.timeout(self._rules.stop_s):
                await process.wait()
            self._note("stopped")
        except TimeoutError:
            process.kill()
            await process.wait()
            self._note(f"killed: it did not end within {self._rules.stop_s:g} s")
        await reading
        self.state = "ended"


class Supervisor:
    """A set of children, by name.

    make  returns the child of a spec
    """

    def __init__(self, make: Callable[[Spec], Child]) -> None:
        self.children: dict[str, Child] = {}
        self._make = make
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def reconcile(self, specs: Sequence[Spec]) -> None:
        """Stop what is not wanted any more or in another way, start what is new; leave the rest alone."""
        wanted = {spec.name: spec for spec in specs}
        await self.stop([name for name, child in self.children.items() if wanted.get(name) != child.spec])
        for name, spec in wanted.items():
            if name not in self.children:
                child = self.children[name] = self._make(spec)
                self._tasks[name] = asyncio.create_task(child.run())
                await asyncio.sleep(STAGGER_S)

    async def stop(self, names: Iterable[str]) -> None:
        """Stop some, all at once, and forget them."""
        tasks: list[Awaitable[None]] = []
        for name in list(names):
            task = self._tasks.pop(name)
            task.cancel()
            tasks.append(task)
            del self.children[name]
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise what went wrong in keeping a child."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error


def _end_in_words(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"

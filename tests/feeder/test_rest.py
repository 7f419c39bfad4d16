"""The weight budget with time as an argument, and real answers over HTTP on loopback."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import Request
from feeder.credentials import Secret
from feeder.rest import WINDOW_S, Answer, Rest, WeightBudget
from feeder.venues.base import Limits

LIMITS = Limits(
    streams_per_connection=10, messages_per_s=10, connects=10, connects_window_s=1.0,
    lifetime_s=10.0, weight_per_minute=100, weight_header="X-Used", backoff_base_s=0.01, backoff_cap_s=0.05,
)  # fmt: skip


def used(budget: WeightBudget, weight: int, now_s: float) -> float:
    """Return how long the call has to wait; one that may go is counted."""
    wait_s = budget.wait_s(weight, now_s)
    if not wait_s:
        budget.spend(weight, now_s)
    return wait_s


def test_what_was_spent_comes_back_after_the_window() -> None:
    budget = WeightBudget(100)
    assert used(budget, 50, 600.0) == 0.0
    assert used(budget, 40, 610.0) == 0.0
    assert used(budget, 1, 620.0) == WINDOW_S - 20
    assert used(budget, 51, 620.0) == WINDOW_S - 10
    assert used(budget, 1, 600.0 + WINDOW_S) == 0.0


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 30)), min_size=1, max_size=200), st.floats(0, 60))
def test_no_minute_of_any_clock_gets_more_than_the_budget(
    calls: list[tuple[int, float]], offset_s: float
) -> None:
    budget, now_s = WeightBudget(100), 0.0
    minutes: Counter[int] = Counter()
    for weight, pause_s in calls:
        now_s += pause_s
        while wait_s := budget.wait_s(weight, now_s):
            now_s += wait_s
        budget.spend(weight, now_s)
        minutes[int((now_s + offset_s) // 60)] += weight
    assert max(minutes.values()) <= 90


def test_the_venue_s_own_count_wins_if_it_is_greater() -> None:
    budget = WeightBudget(100)
    assert used(budget, 10, 600.0) == 0.0
    budget.believe(85, 601.0)
    assert used(budget, 10, 610.0) == pytest.approx(WINDOW_S - 10)
    budget.believe(3, 611.0)
    assert used(budget, 10, 612.0) == pytest.approx(WINDOW_S - 12)


def test_a_closed_budget_stays_closed_that_long() -> None:
    budget = WeightBudget(100)
    budget.close(7.0, 600.0)
    assert budget.wait_s(1, 602.0) == 5.0
    assert budget.wait_s(1, 607.0) == 0.0


def test_a_call_heavier_than_the_budget_is_not_held_for_ever() -> None:
    assert WeightBudget(100).wait_s(500, 600.0) == 0.0


def serve(
    handler: Callable[[web.Request], Awaitable[web.Response]],
    ask: Callable[[Rest], Awaitable[None]],
    limits: Limits = LIMITS,
) -> Counter[str]:
    """Run `ask` against a venue whose every answer is the handler's. Return the counters."""
    counters: Counter[str] = Counter()

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with Rest(f"http://{host}:{port}", limits, counters) as rest:
            await asyncio.wait_for(ask(rest), 20)
        await runner.cleanup()

    asyncio.run(main())
    return counters


async def settled(rest: Rest, *requests: Request) -> list[Answer]:
    answers: list[Answer] = []
    for request in requests:
        rest.ask(request, answers.append, lambda: True)
    while len(answers) < len(requests):
        await asyncio.sleep(0.005)
    return answers


def test_429_is_waited_out_as_long_as_the_venue_says() -> None:
    times: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.Response(body=b"{}")

    async def ask(rest: Rest) -> None:
        (answer,) = await settled(rest, Request("/x", weight=1, priority=0, key="x"))
        assert answer.status == 200

    assert serve(handler, ask) == {"rest_429": 1}
    assert times[1] - times[0] >= 0.99


def test_a_refusal_in_the_venue_s_own_words_is_waited_out_as_a_429() -> None:
    times: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        return web.Response(body=b'{"code":50011}' if len(times) == 1 else b"{}")

    async def ask(rest: Rest) -> None:
        (answer,) = await settled(rest, Request("/x", weight=1, priority=0, key="x"))
        assert answer.body == b"{}"

    limits = msgspec.structs.replace(
        LIMITS, refusal_s=lambda status, body: int(status == 200 and b"50011" in body)
    )
    assert serve(handler, ask, limits) == {"rest_429": 1}
    assert times[1] - times[0] >= 0.99


def test_a_server_s_failures_are_tried_again_and_a_refusal_is_final() -> None:
    seen: Counter[str] = Counter()

    async def handler(request: web.Request) -> web.Response:
        seen[request.path] += 1
        if request.path == "/bad":
            return web.Response(status=400, body=b'{"code":-1121}')
        return web.Response(status=503 if seen[request.path] < 3 else 200, body=b"late")

    async def ask(rest: Rest) -> None:
        requests = [Request(path, weight=1, priority=0, key=path) for path in ("/bad", "/late")]
        answers = await settled(rest, *requests)
        assert sorted(answer.status for answer in answers) == [200, 400]

    counters = serve(handler, ask)
    assert seen == {"/bad": 1, "/late": 3}
    assert (counters["rest_5xx"], counters["rest_4xx"]) == (2, 1)


def test_urgent_calls_go_first() -> None:
    order: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        order.append(request.path)
        await asyncio.sleep(0.05)
        return web.Response(body=b"")

    async def ask(rest: Rest) -> None:
        requests = [Request(f"/{n}", weight=1, priority=9, key="") for n in range(8)]
        await settled(rest, *requests, Request("/urgent", weight=1, priority=0, key=""))

    serve(handler, ask)
    assert "/urgent" in order[:5]


def test_what_nobody_wants_any_more_is_not_asked() -> None:
    async def handler(_: web.Request) -> web.Response:
        raise AssertionError

    async def ask(rest: Rest) -> None:
        rest.ask(Request("/x", weight=1, priority=0, key=""), lambda _: None, lambda: False)
        while not rest.idle:
            await asyncio.sleep(0.005)

    assert not serve(handler, ask)


def test_an_urgent_call_overtakes_one_that_waits_for_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.rest.WINDOW_S", 0.5)
    order: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        order.append(request.path)
        return web.Response(body=b"")

    async def ask(rest: Rest) -> None:
        requests = [Request(f"/{n}", weight=90, priority=9, key="") for n in range(3)]
        urgent = asyncio.create_task(asyncio.sleep(0.1))
        urgent.add_done_callback(
            lambda _: rest.ask(Request("/urgent", weight=90, priority=0, key=""), print, lambda: True)
        )
        await settled(rest, *requests)

    serve(handler, ask)
    assert order == ["/0", "/urgent", "/1", "/2"]


def test_markets_that_share_a_pool_share_the_budget() -> None:
    times: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        return web.Response(body=b"", headers={"X-Used": str(45 * len(times))})

    async def ask(rest: Rest) -> None:
        async with Rest(rest.url, LIMITS, Counter(), rest._budget) as other:
            await rest.get("/one", 45)
            await other.get("/two", 45)
            assert rest._budget.wait_s(1, time.monotonic()) > 55

    serve(handler, ask)


def test_a_body_is_sent_by_post_with_its_headers_and_the_token() -> None:
    seen: list[tuple[str, str, bytes, str | None, str | None]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        body = await request.read()
        seen.append((request.method, request.path, body, headers.get("tr_cd"), headers.get("authorization")))
        return web.Response(body=b"{}")

    async def ask(rest: Rest) -> None:
        posted = Request("/x", weight=1, priority=0, key="t1", body=b"{1}", headers={"tr_cd": "t1"})
        assert (posted.name, Request("/x", weight=1, priority=0, key="k").name) == ("/x#t1", "/x")
        await rest.call(posted)
        rest.bearer = Secret("tok")
        await rest.call(posted)
        await rest.call(posted, bare=True)
        await rest.get("/y")

    serve(handler, ask)
    assert seen == [
        ("POST", "/x", b"{1}", "t1", None),
        ("POST", "/x", b"{1}", "t1", "Bearer tok"),
        ("POST", "/x", b"{1}", "t1", None),
        ("GET", "/y", b"", None, "Bearer tok"),
    ]


def test_what_is_private_follows_no_redirection() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async def ask(rest: Rest) -> None:
        for request in (
            Request("/form", weight=1, priority=0, key="", body=b"secret"),
            Request("/key", weight=1, priority=0, key="", headers={"x-key": "secret"}),
        ):
            assert (await rest.call(request)).status == 307
        rest.bearer = Secret("tok")
        assert (await rest.get("/token")).status == 307

    serve(handler, ask)
    assert seen == ["/form", "/key", "/token"]


def test_a_refused_token_is_told_once_and_the_call_made_again_with_the_next() -> None:
    told: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers["authorization"] == "Bearer new" else 401)

    async def ask(rest: Rest) -> None:
        def refused() -> None:
            told.append("refused")
            rest.bearer = Secret("new")

        rest.bearer, rest.refused = Secret("old"), refused
        requests = [Request(f"/{n}", weight=1, priority=0, key="") for n in range(3)]
        assert [answer.status for answer in await settled(rest, *requests)] == [200] * 3

    counters = serve(handler, ask)
    assert told == ["refused"]
    assert counters["rest_4xx"] == 0


def test_what_an_answer_means_may_stand_in_its_body() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"bad")

    async def ask(rest: Rest) -> None:
        rest.status_of = lambda status, body: 400 if body == b"bad" else status
        (answer,) = await settled(rest, Request("/x", weight=1, priority=0, key=""))
        assert answer.status == 400

    assert serve(handler, ask) == {"rest_4xx": 1}

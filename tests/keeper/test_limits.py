from hypothesis import given
from hypothesis import strategies as st

from keeper.limits import (
    BURST_REQUESTS,
    MAX_SOURCES,
    REQUESTS_PER_S,
    Allowlist,
    Bucket,
    Cookies,
    Sources,
    is_loopback,
    tcp_bucket,
)

S = 1_000_000_000
AWAY = ("192.0.2.7", 4000)
HERE = ("127.0.0.1", 4000)


@given(st.lists(st.tuples(st.integers(0, S // 2), st.integers(0, 50)), max_size=60))
def test_a_bucket_never_gives_more_than_burst_and_rate(steps: list[tuple[int, int]]) -> None:
    bucket, now, taken = Bucket(100, 20, 0), 0, 0
    for wait, n in steps:
        now += wait
        if bucket.take(n, now):
            taken += n
    assert taken <= 20 + 100 * now / S + 1e-6


def test_what_was_spent_is_owed() -> None:
    bucket = Bucket(100, 20, 0)
    bucket.spend(120)
    assert bucket.level(S // 2) < 0 < bucket.level(S + S // 10)


def test_requests_come_in_a_burst_and_then_at_the_rate_sixteenfold_on_loopback() -> None:
    sources = Sources()
    for source, factor in ((AWAY, 1), (HERE, 16)):
        assert sum(sources.take_request(source, 0) for _ in range(10_000)) == factor * BURST_REQUESTS
        later = sum(sources.take_request(source, ms * 1_000_000) for ms in range(1, 1001) for _ in range(20))
        assert later == factor * REQUESTS_PER_S


def test_another_port_is_another_source() -> None:
    sources = Sources()
    while sources.take_request(AWAY, 0):
        pass
    assert sources.take_request((AWAY[0], AWAY[1] + 1), 0)


def test_the_sources_remembered_are_bounded_and_the_busy_ones_stay() -> None:
    sources = Sources()
    while sources.take_request(AWAY, 0):
        pass
    for n in range(MAX_SOURCES + 100):
        sources.take_request((f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1), 0)
        if n % 1000 == 0:
            assert not sources.take_request(AWAY, 0)
    assert len(sources) == MAX_SOURCES
    assert not sources.take_request(AWAY, 0)


def test_a_cookie_is_good_for_its_address_this_minute_and_the_last() -> None:
    cookies = Cookies(bytes(32))
    made = 90 * S
    cookie = cookies.of(AWAY, made)
    assert cookie
    for now, good in ((60 * S, True), (119 * S, True), (179 * S, True), (180 * S, False), (59 * S, False)):
        assert cookies.valid(cookie, AWAY, now) is good
    assert not cookies.valid(cookie, (AWAY[0], AWAY[1] + 1), made)
    assert not cookies.valid(cookie, ("192.0.2.8", AWAY[1]), made)
    assert not cookies.valid(0, AWAY, made)
    assert not Cookies(bytes(31) + b"\1").valid(cookie, AWAY, made)


def test_only_this_host_and_the_networks_named_are_allowed() -> None:
    allow = Allowlist(["192.0.2.0/25"])
    assert [allow.allows(host) for host in ("127.0.0.9", "192.0.2.7", "192.0.2.200", "10.0.0.1")] == [
        True,
        True,
        False,
        False,
    ]
    assert not Allowlist([]).allows("192.0.2.7")
    assert is_loopback("127.1.2.3")


def test_bytes_by_tcp_are_sixteenfold_on_loopback() -> None:
    assert tcp_bucket("127.0.0.1", 0).level(0) == 16 * tcp_bucket("192.0.2.7", 0).level(0)

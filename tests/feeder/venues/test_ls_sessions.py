"""Korean time, sessions by the clock, and what the venue says of them."""

from datetime import UTC, date, datetime, timedelta

import pytest

from feeder.venues.ls_sessions import (
    AFTER_MARKET,
    PHASES,
    Exchange,
    Markets,
    Phase,
    by_clock,
    event_ns,
    korean_day,
    second_of_day,
    seconds_of,
    trades,
)

S = 1_000_000_000
KOSPI, KOSDAQ, NXT, BOTH = Exchange.KOSPI, Exchange.KOSDAQ, Exchange.NXT, Exchange.UNIFIED


def at(text: str) -> int:
    """Return the ns since the epoch of a Korean time."""
    korea = datetime.fromisoformat(text).replace(tzinfo=UTC) - timedelta(hours=9)
    return int(korea.timestamp()) * S


def day_of(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def test_the_korean_day_begins_nine_hours_before_utc_s() -> None:
    assert korean_day(at("2026-11-30T00:00:00")) == day_of("2026-11-30")
    assert korean_day(at("2026-11-29T23:59:59")) == day_of("2026-11-29")
    assert second_of_day(at("2026-11-30T09:00:01")) == 9 * 3_600 + 1
    assert day_of("2026-09-14") == AFTER_MARKET


@pytest.mark.parametrize("received", ["2026-11-30T09:08:51", "2026-11-30T00:00:01", "2026-11-30T23:59:59"])
def test_a_time_of_day_is_of_the_korean_day_of_receipt(received: str) -> None:
    assert event_ns("090851", at(received)) == at("2026-11-30T09:08:51")


@pytest.mark.parametrize(
    "clock", ["", " ", "K0257", "9085", "240000", "096000", "090860", "٠٩٠٨٥١", "-90851"]
)
def test_what_is_no_time_of_day(clock: str) -> None:
    assert event_ns(clock, at("2026-11-30T09:00:00")) == 0
    assert clock in ("240000", "096000", "090860") or seconds_of(clock) == -1


def test_without_a_date_there_is_no_event_time() -> None:
    assert event_ns("090851", 10_000_000) == 0  # single frames, played without receive times


@pytest.mark.parametrize(
    ("exchange", "clock", "phase"),
    [
        (KOSPI, "082959", Phase.CLOSED), (KOSPI, "083000", Phase.AUCTION), (KOSPI, "085959", Phase.AUCTION),
        (KOSPI, "090000", Phase.OPEN), (KOSDAQ, "151959", Phase.OPEN), (KOSDAQ, "152000", Phase.AUCTION),
        (KOSPI, "153000", Phase.CLOSED), (KOSPI, "154500", Phase.FIXED), (KOSPI, "160000", Phase.OPEN),
        (KOSPI, "200000", Phase.CLOSED), (NXT, "075959", Phase.CLOSED), (NXT, "080000", Phase.OPEN),
        (NXT, "085500", Phase.CLOSED), (NXT, "090015", Phase.CLOSED), (NXT, "090030", Phase.OPEN),
        (NXT, "152500", Phase.CLOSED), (NXT, "153500", Phase.AUCTION), (NXT, "195959", Phase.OPEN),
        (BOTH, "081500", Phase.OPEN), (BOTH, "084500", Phase.AUCTION), (BOTH, "120000", Phase.OPEN),
        (BOTH, "152500", Phase.AUCTION), (BOTH, "155000", Phase.OPEN), (BOTH, "210000", Phase.CLOSED),
    ],
)  # fmt: skip
def test_sessions_by_the_clock(exchange: Exchange, clock: str, phase: Phase) -> None:
    assert by_clock(exchange, seconds_of(clock), day_of("2026-11-30")) == phase


def test_krx_has_an_after_market_since_september_2026() -> None:
    evening = seconds_of("163000")
    assert by_clock(KOSPI, evening, day_of("2026-09-11")) == Phase.AUCTION  # single-price
    assert by_clock(KOSPI, evening, day_of("2026-09-14")) == Phase.OPEN
    assert by_clock(KOSPI, seconds_of("190000"), day_of("2026-09-11")) == Phase.CLOSED


def test_nothing_trades_on_weekends() -> None:
    assert trades(KOSPI, at("2026-11-30T10:00:00"))  # Monday
    assert not trades(KOSPI, at("2026-11-28T10:00:00"))
    assert not trades(KOSPI, at("2026-11-29T10:00:00"))
    assert not trades(KOSPI, at("2026-11-30T08:45:00"))


def test_what_the_venue_says_goes_before_the_clock() -> None:
    """On the day of the university entrance examination everything begins an hour later."""
    markets, now = Markets(), at("2026-11-19T09:30:00")
    assert markets.phase(KOSPI, KOSPI, "093000", now) == Phase.OPEN
    markets.hear(KOSPI, "11", now)
    assert markets.phase(KOSPI, KOSPI, "093000", now) == Phase.AUCTION
    assert markets.phase(KOSDAQ, KOSDAQ, "093000", now) == Phase.OPEN
    assert markets.phase(BOTH, KOSPI, "093000", now) == Phase.AUCTION
    assert markets.phase(BOTH, KOSDAQ, "093000", now) == Phase.OPEN
    markets.hear(KOSPI, "21", now + 1_800 * S)
    assert markets.phase(KOSPI, KOSPI, "", now + 1_800 * S) == Phase.OPEN
    assert markets.phase(KOSPI, KOSPI, "084500", now + 86_400 * S) == Phase.AUCTION  # of yesterday


def test_after_the_closing_price_session_the_clock_tells_again() -> None:
    markets, now = Markets(), at("2026-11-30T15:45:00")
    markets.hear(KOSPI, "51", now)
    assert markets.phase(KOSPI, KOSPI, "154500", now) == Phase.FIXED
    markets.hear(KOSPI, "52", now + 900 * S)
    assert markets.phase(KOSPI, KOSPI, "160500", now + 900 * S) == Phase.OPEN


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("25", Phase.AUCTION), ("22", Phase.AUCTION), ("21", Phase.OPEN), ("44", Phase.AUCTION),
        ("42", Phase.AUCTION), ("41", Phase.CLOSED), ("61", Phase.CLOSED), ("62", Phase.AUCTION),
        ("63", Phase.OPEN), ("68", Phase.CLOSED), ("71", Phase.OPEN), ("69", Phase.CLOSED),
        ("55", Phase.OPEN), ("57", Phase.CLOSED), ("A5", Phase.CLOSED), ("C2", Phase.OPEN),
    ],
)  # fmt: skip
def test_states_are_those_of_the_portal(status: str, phase: Phase) -> None:
    """22 to 25 count down to the open, 42 to 44 to the close: some clients have them the other way round."""
    assert PHASES[status] == phase


@pytest.mark.parametrize("status", ["64", "65", "66", "67", "99", ""])
def test_sidecars_and_what_is_unknown_change_nothing(status: str) -> None:
    markets, now = Markets(), at("2026-11-30T10:00:00")
    markets.hear(KOSPI, "21", now)
    markets.hear(KOSPI, status, now)
    assert markets.phase(KOSPI, KOSPI, "100000", now) == Phase.OPEN

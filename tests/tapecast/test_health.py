"""Verdicts on writers, from golden frames and lines and the state of a tape."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_types.enums import EndReason, Flag, MsgType, VenueState
from tapecast.health import Health, examine, flow, judge, key_of, marks_of
from tapecast.hearing import Hearing
from tapecast.tape_state import TapeState
from udp_protocol.frame import pack_header, unpack_header
from udp_protocol.payloads import encode
from udp_protocol.settings import Multicast
from udp_protocol.text import Exchange

VECTORS = json.loads((Path(__file__).parents[1] / "udp_protocol" / "wire-vectors.json").read_text())
STATUS = bytes.fromhex(VECTORS["frames"]["venue_status"]["hex"])
T = 1_763_683_200_123_456_789  # of every golden line
SESSION = 1_763_683_199  # of every golden frame
S = 1_000_000_000
SOURCE = ("127.0.0.1", 5001)
LIVES: dict[str, Any] = {
    "pid": 77,
    "session": SESSION,
    "first_channel": 2,
    "pulse_ns": 90 * S,
    "seen_ns": 90 * S + 5,
}


def tape(writer: str = "binance", **fields: Any) -> TapeState:
    return TapeState(writer=writer, **LIVES | fields)


def status(
    state: VenueState, connected: int, total: int, msgs_in: int = 100, flags: int = 0, ts_ns: int = T
) -> bytes:
    """Return the golden VENUE_STATUS with other contents."""
    root = {
        "state": state, "reason": 0, "first_channel": 2, "n_channels": 8, "connected": connected,
        "disconnected": total - connected, "total": total, "reconnects": 4, "msgs_in": msgs_in,
        "last_msg_ns": T - S,
    }  # fmt: skip
    payload, count = encode(MsgType.VENUE_STATUS, root, strings=("binance",))
    golden = unpack_header(STATUS)
    return (
        pack_header(golden._replace(flags=flags, ts_send_ns=ts_ns, payload_len=len(payload), count=count))
        + payload
    )


def heard(*datagrams: bytes, text: str = "") -> Hearing:
    hearing = Hearing()
    for datagram in datagrams:
        hearing.take(2, datagram, SOURCE)
    hearing.take(1, text.encode(), SOURCE)
    return hearing


def examined(state: TapeState, hearing: Hearing, rings_bytes: int | None = None) -> Health:
    return examine(
        state, hearing, Multicast(), started_ns=T - 5 * S, rings_bytes=rings_bytes, now_ns=T, waited_s=2.2
    )


UP = status(VenueState.UP, 12, 12)
HEARTBEAT = bytearray(bytes.fromhex(VECTORS["frames"]["heartbeat"]["hex"]))
HEARTBEAT[30] = 2  # the channel


def test_a_writer_s_name_tells_its_mark() -> None:
    assert [int(marks_of(name)) for name in ("binance", "binance.2", "binance.replay", "binance.2.sim")] == [
        0, 0, Flag.REPLAY, Flag.SIM,
    ]  # fmt: skip
    assert key_of(tape("binance.replay")) == (2, SESSION, Flag.REPLAY)
    assert examined(tape("okx.test"), heard()).source == "TEST"


def test_all_is_well() -> None:
    text = "".join(f"{line}\n" for line in VECTORS["text"][:4])
    held = {"records": 900, "oldest_record": 7, "held_since_ns": T - 60 * S, "used_bytes": 4096}
    health = examined(tape(**held), heard(UP, text=text), rings_bytes=2**20)
    assert json.loads(msgspec.json.encode(health)) == {
        "writer": "binance", "state": "up", "source": "LIVE", "session": SESSION, "age_s": 5.0, "pid": 77,
        "pulse_age_s": 0.0,
        "links": {
            "state": "up", "connected": 12, "total": 12, "reconnects": 4, "messages": 100,
            "last_message_age_s": 1.0,
        },
        "flow": {
            "perp": {"symbols": 412, "trades": 10233, "l2": 55211, "bbo": 9911, "drops": 0},
            "spot": {"events": 128847},
        },
        "latency_ns": {"recv_to_send": {"n": 812, "p50": 38000, "p99": 71000, "p999": 184000,
            "max": 912000}},
        "tape": {
            "used_bytes": 4096, "max_bytes": 2**28, "records": 900, "oldest_record": 7,
            "reaches_back_s": 60.0,
        },
        "rings": {"used_bytes": 2**20, "max_bytes": 2**30},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"pulse_ns": 0, "pid": 0, "end_reason": EndReason.PLANNED}, "ended", "ended in order"),
        ({"pulse_ns": 0, "pid": 0, "end_reason": EndReason.FAULT}, "down", "stopped by a fault"),
        ({"pulse_ns": 0, "pid": 0}, "down", "stopped by a fault"),
        ({"pulse_ns": 0}, "degraded", "process 77 has begun no session yet"),
        ({"session": 0}, "degraded", "process 77 has begun no session yet"),
        ({"session": 0, "pid": 0}, "down", "no session was ever begun"),
        ({"seen_ns": 93 * S}, "down", "process 77 hangs: the last sign of life is 3.0 s old"),
        ({"seen_ns": 93 * S, "pid": 0}, "down", "its process is gone and ended no session"),
        ({"seen_ns": 4 * S}, "down", "86.0 s old"),  # the host was started again since
        ({"damage": "x.tape: its header is damaged"}, "degraded", "x.tape: its header is damaged"),
    ],
)
def test_what_a_tape_tells_alone(fields: dict[str, Any], state: str, reason: str) -> None:
    health = examined(tape(**fields), heard(UP))
    assert health.state == state
    assert reason in health.reasons[0]


@pytest.mark.parametrize(
    ("hearing", "state", "reason"),
    [
        (heard(UP), "up", ""),
        (heard(), "degraded", "no frame of it was heard in 2.2 s"),
        (heard(status(VenueState.UP, 12, 12, flags=Flag.REPLAY)), "degraded", "no frame of it was heard"),
        (
            heard(status(VenueState.DEGRADED, 11, 12)),
            "degraded",
            "venue degraded: 11 of 12 links are up",
        ),
        (heard(status(VenueState.CONNECTING, 0, 2)), "degraded", "venue connecting: 0 of 2 links"),
        (heard(status(VenueState.MAINTENANCE, 0, 2)), "degraded", "venue maintenance"),
        (heard(status(VenueState.DOWN, 0, 2)), "down", "venue down: 0 of 2 links"),
        (heard(UP, status(VenueState.UP, 12, 12, flags=Flag.NOTAPE)), "degraded", "no tape holds"),
        (heard(UP, status(VenueState.UP, 12, 12, flags=Flag.CLOCK_UNSYNC)), "degraded", "clock was stepped"),
        (heard(UP, status(VenueState.UP, 12, 12, flags=Flag.END)), "ended", "has just ended"),
        (heard(UP, text="ALERT|crit|TAPE_FULL|writer=binance|5\n"), "degraded", "TAPE_FULL writer=binance"),
        (heard(UP, text="ALERT|warn|DEPTH_SILENT|symbol=X|5\n"), "up", ""),
        (
            heard(bytes(HEARTBEAT)),
            "degraded",
            "no VENUE_STATUS in 2.2 s",
        ),
    ],
)
def test_what_is_heard_of_a_writer_that_lives(hearing: Hearing, state: str, reason: str) -> None:
    health = examined(tape(), hearing)
    assert health.state == state
    assert reason in "".join(health.reasons)


def test_why_nothing_can_be_heard_is_said() -> None:
    assert judge(tape(), Hearing().of(key_of(tape())), 2.2, "no such interface") == (
        "degraded",
        ["its frames cannot be heard: no such interface"],
    )


def test_rates_come_from_the_first_and_the_last_report() -> None:
    hearing = heard(
        status(VenueState.UP, 2, 2, msgs_in=100, ts_ns=T - 2 * S),
        status(VenueState.UP, 2, 2, msgs_in=130, ts_ns=T - S),
        status(VenueState.UP, 2, 2, msgs_in=400, ts_ns=T),
        text=f"EXCHANGE|binance|perp|symbols=4,books=3,trades=10|{T}\n"
        f"EXCHANGE|binance|perp|symbols=4,books=4,trades=40|{T + 2 * S}\n"
        f"EXCHANGE|binance|spot|7|{T}\nEXCHANGE|binance|spot|9|{T + S}\n",
    )
    health = examined(tape(), hearing)
    assert health.links is not None
    assert (health.links.messages, health.links.messages_per_s) == (400, 150.0)
    assert health.flow == {
        "perp": {"symbols": 4, "books": 4, "trades": 40, "trades_per_s": 15.0},
        "spot": {"events": 9, "events_per_s": 2.0},
    }


COUNTS = st.integers(0, 2**63) | st.dictionaries(
    st.sampled_from(["symbols", "trades", "l2"]), st.integers(0, 2**63)
)


@given(
    st.lists(
        st.builds(Exchange, st.just("x"), st.sampled_from(["spot", "perp"]), COUNTS, st.integers(0, 2**62))
    )
)
def test_any_reports_give_the_last_counts(lines: list[Exchange]) -> None:
    newest = {line.kind: line for line in sorted(lines, key=lambda line: line.ts_ns)}
    said = flow(lines)
    assert said.keys() == newest.keys()
    for kind, line in newest.items():
        counts = {"events": line.counts} if isinstance(line.counts, int) else line.counts
        assert {word: said[kind][word] for word in counts} == counts


def test_counters_alerts_and_losses_are_told_once() -> None:
    text = (
        f"COUNTERS|binance|bad=9,none=0|{T}\nCOUNTERS|binance|a=1,bad=12|{T + S}\n"
        "ALERT|warn|DEPTH_SILENT|symbol=X|5\nALERT|warn|DEPTH_SILENT|symbol=X|5\nALERT|info|TAPE_BACK|w=1|6\n"
        f"GAP|4|{SESSION}|5|9|lost|7\nGAP|4|{SESSION}|5|9|lost|7\nGAP|4|{SESSION}|20|20|recovered|7\n"
        f"GAP|4|{SESSION + 1}|5|9|lost|7\n"
    )
    health = examined(tape(), heard(UP, text=text))
    assert health.counters == {"a": 1, "bad": 12}
    assert [(told.level, told.keyword, told.text) for told in health.alerts] == [
        ("warn", "DEPTH_SILENT", "symbol=X"),
        ("info", "TAPE_BACK", "w=1"),
    ]
    assert health.frames_lost_by_subscribers == 5

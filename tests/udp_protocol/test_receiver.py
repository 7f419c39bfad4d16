"""Who may send, under which seal, and what of the state loop passes. Keys are made up; frames are golden."""

import json
from pathlib import Path

import pytest

from market_types.enums import SealAlg
from udp_protocol.datagram import walk
from udp_protocol.frame import Frame
from udp_protocol.ordering import Item, State
from udp_protocol.receiver import Receiver
from udp_protocol.seal import SealPolicy, seal

VECTORS = json.loads((Path(__file__).parent / "wire-vectors.json").read_text())["frames"]
TRADE = bytes.fromhex(VECTORS["trade_shib"]["hex"])
SPIN = bytes.fromhex(VECTORS["l2_snapshot_spin"]["hex"])
CHANNEL = 7
WALL_S = 1_763_683_200
OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def heard(receiver: Receiver, data: bytes, source: str = "10.0.0.1") -> bool:
    return receiver.datagram(CHANNEL, data, 1, WALL_S, [], source=source)


def test_each_source_has_its_weakest_seal() -> None:
    strict = SealPolicy(SealAlg.HMAC_SHA256, {1: OLD})
    receiver = Receiver([CHANNEL], 0, policies={"10.0.0.2": strict})
    assert heard(receiver, TRADE)
    assert not heard(receiver, TRADE, "10.0.0.2")
    assert not heard(receiver, seal(TRADE, SealAlg.CRC32), "10.0.0.2")
    assert heard(receiver, seal(TRADE, SealAlg.BLAKE2B, 1, OLD), "10.0.0.2")
    assert receiver.counters["bad_seal"] == 2


@pytest.mark.parametrize("alg", [SealAlg.HMAC_SHA256, SealAlg.BLAKE2B])
def test_while_keys_are_rotated_both_are_valid(alg: SealAlg) -> None:
    receiver = Receiver([CHANNEL], 0, policy=SealPolicy(alg, {1: OLD}))
    by_old, by_new = seal(TRADE, alg, 1, OLD), seal(TRADE, alg, 2, NEW)
    assert [heard(receiver, by_old), heard(receiver, by_new)] == [True, False]
    receiver.policy = SealPolicy(alg, {1: OLD, 2: NEW})
    assert [heard(receiver, by_old), heard(receiver, by_new)] == [True, True]
    receiver.policy = SealPolicy(alg, {2: NEW})
    assert [heard(receiver, by_old), heard(receiver, by_new)] == [False, True]
    assert receiver.counters["bad_seal"] == 2


def test_strangers_are_not_heard() -> None:
    receiver = Receiver([CHANNEL], 0, sources=("10.0.0.1",))
    assert [heard(receiver, TRADE), heard(receiver, TRADE, "10.0.0.9")] == [True, False]
    assert receiver.counters["bad_source"] == 1


def test_only_state_passes_on_the_spin_and_never_on_a_live_line() -> None:
    receiver = Receiver([CHANNEL], 0)
    out: list[Item] = []
    receiver.spin(CHANNEL, SPIN, out)
    assert [type(item) for item in out] == [State]
    receiver.spin(CHANNEL, TRADE, out)
    receiver.datagram(CHANNEL, SPIN, 1, WALL_S, out)
    assert not [item for item in out if isinstance(item, Frame)]
    assert receiver.counters["bad_flags"] == 2


def test_a_stream_s_frames_of_other_channels_and_marks_are_counted() -> None:
    receiver = Receiver([8], 0)
    (frame,) = walk(TRADE, channel=None)
    receiver.stream(frame, 1, WALL_S, [])
    marked = frame.header._replace(channel_id=8, flags=2048)
    receiver.stream(frame._replace(header=marked), 1, WALL_S, [])
    assert receiver.counters == {"bad_channel": 1, "refused_source": 1}

"""What goes into a link comes out as the faults say, and the ledger tells all of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapecast.chaos.impairment import (
    LINKS,
    NS_PER_MS,
    NS_PER_S,
    Faults,
    FaultsError,
    Impairment,
    Link,
    Links,
    read_faults,
)

SHARES = st.floats(0, 1)


def carried(link: Link, n: int, step_ns: int = NS_PER_MS) -> list[tuple[int, bytes]]:
    return [out for at in range(n) for out in link.carry(at.to_bytes(4, "big"), at * step_ns)]


@given(
    loss=SHARES,
    burst=SHARES,
    duplicate=SHARES,
    reorder=SHARES,
    flip=SHARES,
    truncate=SHARES,
    seed=st.integers(),
)
def test_the_ledger_accounts_for_every_copy(seed: int, **shares: float) -> None:
    link = Link(Impairment(**shares, blackouts=((0.01, 0.02),)), seed)  # type: ignore[arg-type]
    out = carried(link, 100)
    done = link.ledger
    assert done["sent"] == 100
    gone = done["lost"] + done["burst_lost"] + done["blacked_out"]
    assert done["sent"] + done["duplicated"] == len(out) + gone
    assert done["delivered"] == len(out)


def test_a_whole_link_changes_nothing() -> None:
    link = Link(Impairment(delay_ms=3), 1)
    assert carried(link, 50) == [((at + 3) * NS_PER_MS, at.to_bytes(4, "big")) for at in range(50)]


@pytest.mark.parametrize(
    ("impairment", "kind", "share"),
    [
        (Impairment(loss=0.05), "lost", 0.05),
        (Impairment(duplicate=0.02), "duplicated", 0.02),
        (Impairment(reorder=0.05), "reordered", 0.05),
        (Impairment(flip=0.1), "flipped", 0.1),
        (Impairment(truncate=0.1), "truncated", 0.1),
        (Impairment(burst=0.001, burst_datagrams=20), "burst_lost", 0.02),
    ],
)
def test_each_fault_takes_its_share(impairment: Impairment, kind: str, share: float) -> None:
    link = Link(impairment, 4)
    carried(link, 100_000, 1000)
    assert share * 0.75 < link.ledger[kind] / 100_000 < share * 1.25
    assert all(not number for name, number in link.ledger.items() if name not in (kind, "sent", "delivered"))


def test_late_ones_are_late_by_no_more_than_said_and_bytes_change_where_the_ledger_says() -> None:
    link = Link(Impairment(reorder=0.5, reorder_ms=20, flip=0.3, truncate=0.2), 9)
    out = [(at, *copy) for at in range(2_000) for copy in link.carry(at.to_bytes(8, "big"), at * NS_PER_MS)]
    delays = [arrived - at * NS_PER_MS for at, arrived, _ in out]
    assert min(delays) == NS_PER_MS // 10
    assert 15 * NS_PER_MS < max(delays) <= 20.1 * NS_PER_MS
    cut = sum(len(data) < 8 for _, _, data in out)
    assert cut == link.ledger["truncated"]
    changed = sum(len(data) == 8 and data != at.to_bytes(8, "big") for at, _, data in out)
    assert changed <= link.ledger["flipped"] <= changed + cut


def test_nothing_comes_through_a_blackout() -> None:
    link = Link(Impairment(blackouts=((1.0, 1.5), (2.0, 3.0))), 1, begin_ns=10 * NS_PER_S)
    times = [at_ns // (100 * NS_PER_MS) for at_ns in range(0, 4 * NS_PER_S, 100 * NS_PER_MS)]
    heard = [at for at in times if link.carry(b"x", 10 * NS_PER_S + at * 100 * NS_PER_MS)]
    assert heard == [at for at in times if not (10 <= at < 15 or 20 <= at < 30)]


def test_the_same_seed_does_the_same_and_links_are_worlds_of_their_own() -> None:
    bad = Impairment(loss=0.3, reorder=0.3)
    faults = Faults(line_a=bad, line_b=bad)
    first, again, other = Links(faults, 7), Links(faults, 7), Links(faults, 8)
    assert carried(first.lines[0], 500) == carried(again.lines[0], 500) != carried(other.lines[0], 500)
    assert carried(first.lines[1], 500) != carried(Links(faults, 7).lines[0], 500)
    assert set(first.ledger) == set(LINKS)


def test_faults_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("[line_a]\nloss = 0.05\nblackouts = [[1, 1.5]]\n[answers]\nduplicate = 1\n")
    faults = read_faults(path)
    assert faults.line_a == Impairment(loss=0.05, blackouts=((1.0, 1.5),))
    assert faults.answers.duplicate == 1
    assert faults.line_b == faults.spin == faults.requests == Impairment()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[line_c]\nloss = 0.1", "[line_c]: no such link"),
        ("[line_a]\nlose = 0.1", "unknown field `lose`"),
        ("[line_a]\nloss = 1.1", "loss = 1.1; expected a share"),
        ("[line_a]\nloss = -0.1", "loss = -0.1; expected a share"),
        ("[line_a]\nloss = nan", "loss = nan; expected a share"),
        ('[line_a]\nloss = "much"', "Expected `float`"),
        ("[line_a]\nburst_datagrams = 0", "burst_datagrams = 0; expected 1 or more"),
        ("[line_a]\nreorder_ms = inf", "reorder_ms = inf; expected milliseconds"),
        ("[line_a]\nblackouts = [[2, 1]]", "expected seconds [from, to]"),
        ("line_a = 3", "Expected `object`"),
        ("loss = ", "expected a TOML file"),
    ],
)
def test_every_mistake_is_told_with_its_place(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(FaultsError) as error:
        read_faults(path)
    assert str(path) in str(error.value)
    assert what in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="No such file"):
        read_faults(tmp_path / "none.toml")

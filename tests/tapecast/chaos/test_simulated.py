"""The scenarios in simulated time: short here, whole in the long form."""

from pathlib import Path

import pytest

from market_types.enums import SealAlg
from tapecast.chaos import simulated
from tapecast.chaos.impairment import Faults, Impairment
from tapecast.chaos.results import printed
from tapecast.chaos.simulated import ALL_BAD, twin_of
from tapecast.chaos.sources import SMALL, Bench, Stock
from tapecast.chaos.suite import SIMULATED, run_one


@pytest.mark.parametrize("name", SIMULATED)
def test_it_holds(name: str, stock: Stock) -> None:
    result = run_one(name, Bench(stock, seed=1))
    assert result.held, printed([result])
    assert not result.skipped


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SIMULATED)
def test_it_holds_in_its_whole_form(name: str, seed: int, stock: Stock) -> None:
    result = run_one(name, Bench(stock, seed, long=True))
    assert result.held, printed([result])


def test_the_same_seed_gives_the_same_run(stock: Stock) -> None:
    def run(seed: int) -> tuple[object, ...]:
        with twin_of(stock, SMALL, 20_000, 5_000) as twin:
            consumer = twin.join(ALL_BAD, seed)
            twin.run()
            verdict = consumer.close()
            return verdict, consumer.links.ledger, consumer.figures(), twin.world.now_ns

    assert run(5) == run(5) != run(6)


def test_what_does_not_hold_is_told(stock: Stock) -> None:
    """Flipped bits pass unsealed: the twin has no UDP checksum, and its judge has to see them."""
    flipping = Impairment(flip=0.05)
    with twin_of(stock, SMALL, 20_000, 5_000) as twin:
        consumer = twin.join(Faults(line_a=flipping, line_b=flipping), 1)
        sealed = twin.join(Faults(line_a=flipping, line_b=flipping), 1, alg=SealAlg.CRC32)
        twin.run()
        verdict = consumer.close()
        assert verdict.changed + verdict.unknown > 10
        assert not verdict.held
        assert sealed.close().complete


def test_the_faults_of_a_file_are_run(stock: Stock, tmp_path: Path) -> None:
    result = simulated.run_faults(Bench(stock, 3), Faults(line_a=Impairment(loss=0.5)), n_frames=5_000)
    assert result.held
    assert result.ledgers["lost"] > 100

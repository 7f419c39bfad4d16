"""replay.binance_trades: the window of trades, and their worth in each market's words."""

import pytest

from replay.binance_trades import Trade, Trades, coinm_row, spot_row, usdm_row


def trade(number: int, kind: str = "") -> bytes:
    extra = f',"X":"{kind}"' if kind else ""
    text = f'{{"e":"trade","t":{number},"p":"2.0","q":"3","T":{number},"m":true{extra}}}'
    return f'{{"stream":"s","data":{text}}}'.encode()


def test_window() -> None:
    numbers = [5, 6, 6, 8, 9]  # one came twice, 7 is missing
    trades = Trades("trade", [(10 * n, trade(number)) for n, number in enumerate(numbers)])

    def window(point: int, first: int | None, limit: int) -> list[int]:
        return [row.number for row in trades.window(point, first, limit)]

    assert window(100, 6, 2) == [6, 8]
    assert window(100, 0, 10) == [5, 6, 8, 9]
    assert window(100, None, 2) == [8, 9]
    assert window(40, None, 2) == [6, 8]  # the last one lies ahead
    assert window(0, None, 5) == window(100, 10, 5) == []


def test_insurance_fund_and_adl_are_not_told() -> None:
    messages = [trade(1, "MARKET"), trade(2, "INSURANCE_FUND"), trade(3, "ADL"), trade(4, "MARKET")]
    assert [row.number for row in Trades("trade", enumerate(messages)).window(9, None, 9)] == [1, 4]


@pytest.mark.parametrize(
    ("price", "qty", "base_qty"), [("9642.2", "1", "0.01037108"), ("9635.0", "1", "0.01037883")]
)
def test_worth(price: str, qty: str, base_qty: str) -> None:
    """The COIN-M pairs are the venue's own examples."""
    row = coinm_row(Trade(7, price, qty, 8, True), {"contractSize": 100})
    assert row == {
        "id": 7, "price": price, "qty": qty, "baseQty": base_qty, "time": 8, "isBuyerMaker": True,
    }  # fmt: skip
    assert spot_row(Trade(7, "4.00000100", "12.00000000", 8, True, False), {}) == {
        "id": 7, "price": "4.00000100", "qty": "12.00000000", "quoteQty": "48.00001200", "time": 8,
        "isBuyerMaker": True, "isBestMatch": False,
    }  # fmt: skip
    assert usdm_row(Trade(7, "27785.00", "0.014", 8, False), {})["quoteQty"] == "388.99000"

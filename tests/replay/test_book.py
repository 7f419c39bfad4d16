"""replay.book: the snapshot, what joins it, and the way back."""

from replay.book import Book, Depth


def event(first: int, last: int, bids: str = "", asks: str = "") -> bytes:
    return b'{"stream":"s","data":{"E":7,"T":6,"U":%d,"u":%d,"pu":%d,"b":[%b],"a":[%b]}}' % (
        first, last, first - 1, bids.encode(), asks.encode(),
    )  # fmt: skip


def test_book() -> None:
    snapshot = Depth(10, 1, 2, [("2.0", "5"), ("1.0", "1")], [("3.0", "4")])
    events = [
        (3, event(8, 9, '["2.0","9"]')),  # older than the snapshot
        (5, event(10, 12, '["2.5","7"],["1.0","0.000"]', '["3.0","0"],["3.5","1"]')),
        (9, event(13, 14, '["2.5","0"]')),
    ]
    book = Book(snapshot, events)
    assert book.advance(5, 100)
    assert not book.joined
    assert book.advance(6, 100)
    assert book.joined
    assert book.depth() == Depth(12, 7, 6, [("2.5", "7"), ("2.0", "5")], [("3.5", "1")])
    assert book.advance(100, 100)
    assert book.depth() == Depth(14, 7, 6, [("2.0", "5")], [("3.5", "1")])
    assert book.advance(4, 100)  # back
    assert not book.joined
    assert not book.advance(100, 1)  # in pieces
    assert book.advance(100, 2)
    assert book.depth().lastUpdateId == 14
    assert book.depth().cut(0).bids == []

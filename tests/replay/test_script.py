"""replay.script: the order of messages, and the walk through them."""

from replay.script import Script, StraightPlay


def test_script_keeps_order_and_never_goes_back_in_time() -> None:
    script = Script()
    for ts, name in ((1_000, "x"), (990, "y"), (1_500, "x")):
        script.add(ts, name, name.encode())
    assert (script.start_ns, script.times_ns, script.streams) == (1_000, [0, 0, 500], [0, 1, 0])
    assert script.positions == [[0, 2], [1]]
    play = StraightPlay(script)
    assert (play.names, play.counts, play.point(0)) == (["x", "y"], [2, 1], 0)
    assert [play.payload(play.take()) for _ in range(3)] == [b"x", b"y", b"x"]
    assert (play.next_ns(), play.point(1)) == (None, 3)
    play.rewind()
    assert play.next_ns() == 0


def test_a_stream_may_be_known_before_its_first_message() -> None:
    script = Script()
    assert (script.stream("quiet"), script.stream("x"), script.stream("quiet")) == (0, 1, 0)
    script.add(5, "x", b"x")
    assert (script.names, script.positions, script.streams) == (["quiet", "x"], [[], [0]], [1])

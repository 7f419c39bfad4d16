"""When the next token is asked for. What a login does over HTTP is in venues/test_ls_feed.py."""

import pytest

from feeder.credentials import Credentials, Secret
from feeder.login import BEHIND_S, LEAD_S, STAND_IN_CREDENTIALS, next_s
from feeder.venues.base import Shared


@pytest.mark.parametrize(
    ("lives_s", "expected_s"),
    [
        (66_031, 66_031 - LEAD_S),  # asked for about midday
        (86_400, 86_400 - LEAD_S),
        (2 * LEAD_S + 1, LEAD_S + 1),
        (LEAD_S, LEAD_S + BEHIND_S),  # the venue gave the old end again: wait until it has come
        (1, 1 + BEHIND_S),
    ],
)
def test_a_token_is_renewed_before_its_end_or_just_behind_it(lives_s: float, expected_s: float) -> None:
    assert next_s(lives_s) == expected_s


def test_what_is_written_down_hides_every_secret() -> None:
    shared = Shared(Credentials(Secret("PSKFkey"), Secret("hush")))
    shared.token = Secret("tok")
    assert (
        shared.hide(b'{"a":"PSKFkey","b":"hush","c":"tok","d":"d"}')
        == b'{"a":"***","b":"***","c":"***","d":"d"}'
    )
    assert Shared().hide(b"as it is") == b"as it is"


def test_stand_ins_are_shown_words_that_are_no_keys() -> None:
    assert [part.reveal() for part in STAND_IN_CREDENTIALS if part] == ["stand-in", "stand-in"]

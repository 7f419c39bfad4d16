"""The table `[quality]`."""

import msgspec
import pytest

from feeder.quality_settings import QualitySettings


def test_every_key_has_a_default() -> None:
    assert msgspec.convert({}, QualitySettings) == QualitySettings()
    assert msgspec.convert({"price_z": 12, "stale_book_s": 0.5}, QualitySettings).price_z == 12.0


@pytest.mark.parametrize("key", QualitySettings.__struct_fields__)
@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_impossible_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert({key: value}, QualitySettings)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="price_zz"):
        msgspec.convert({"price_zz": 1}, QualitySettings)

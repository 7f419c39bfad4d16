import os
import stat
from pathlib import Path

import pytest

from market_types.shared_memory import SharedMemoryError, make_file, make_private, open_ours


def test_a_folder_is_made_for_us_alone_or_closed_to_others(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    make_private(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SharedMemoryError, match=r"file/below: cannot be made \(Not a directory\).*TAPECAST_SHM"
    ):
        make_private(tmp_path / "file" / "below")


def test_what_another_user_owns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SharedMemoryError, match=f"owned by user {os.getuid()}, expected {os.getuid() + 1}"):
        make_private(tmp_path)
    with pytest.raises(SharedMemoryError, match="file: owned by user"):
        open_ours(tmp_path / "file")


def test_links_and_folders_are_no_files_of_ours(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SharedMemoryError, match="link: cannot be opened"):
        open_ours(tmp_path / "link")
    for name in (".", "pipe"):
        with pytest.raises(SharedMemoryError, match="not a plain file"):
            open_ours(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_ours(tmp_path / "nothing")


def test_a_linked_folder_is_not_trusted_by_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(SharedMemoryError, match="cannot be made"):  # it points to nothing
        make_private(tmp_path / "link")


def test_a_new_file_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("left by a killed writer")
    descriptor = make_file(path)
    try:
        status = os.fstat(descriptor)
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    finally:
        os.close(descriptor)

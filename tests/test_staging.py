"""Staged folders: all there or not there, whatever happens in between."""

from pathlib import Path

import pytest

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.staging import format_bytes, staged_folder


def test_a_folder_appears_only_when_finished(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with staged_folder(target, overwrite=False) as staging:
        (staging / "a").write_text("new")
        assert not target.exists()
        assert staging.parent == target.parent
    assert (target / "a").read_text() == "new"
    assert target.stat().st_mode & 0o777 == target.parent.stat().st_mode & 0o777
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_crash_the_target_is_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")

    def crash() -> None:
        with staged_folder(target, overwrite=True) as staging:
            (staging / "a").write_text("new")
            raise error

    with pytest.raises(error):
        crash()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_replacing_keeps_a_link_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").touch()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk")
    with staged_folder(link, overwrite=True) as staging:
        (staging / "new").touch()
    assert link.is_symlink()
    assert [path.name for path in link.iterdir()] == ["new"]


def test_what_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for target, needed, message in [
        ("full", 0, "exists and is not empty"),
        ("file", 0, "expected a folder; got a file"),
        ("new", 10**18, r"1000000\.0 TB are needed here"),
    ]:
        with (
            pytest.raises(YoyoError, match=message),
            staged_folder(tmp_path / target, overwrite=False, needed_bytes=needed),
        ):
            pass
    assert sorted(tmp_path.rglob("*")) == before


def test_bytes_are_told_in_the_units_of_disks() -> None:
    assert [format_bytes(n) for n in (12, 1500, 5 * 10**9)] == ["12 B", "1.5 KB", "5.0 GB"]

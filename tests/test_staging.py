"""Staged folders: all there or not there, whatever happens in between."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_yoyo import staging as staging_module
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


def test_the_target_comes_back_if_themove_into_place_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")

    def lose() -> None:
        with staged_folder(target, overwrite=True) as staging:
            staging.rmdir()  # so that there is nothing to move

    with pytest.raises(YoyoError, match=r"not written.*No such file"):
        lose()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EBUSY, "busy")])
def test_a_move_that_is_interrupted_after_any_rename_leaves_one_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, error: BaseException
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    real, done = Path.rename, list[Path]()

    def rename(path: Path, goal: Path) -> Path:
        moved = real(path, goal)
        done.append(path)
        if len(done) == renames:
            raise error
        return moved

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(staging_module, "_exchange", lambda one, other: False)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else YoyoError
    with pytest.raises(expected), staged_folder(target, overwrite=True) as staging:
        (staging / "a").write_text("new")
    assert (target / "a").read_text() == ("old" if renames == 1 else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY])
def test_a_folder_that_cannot_be_renamed_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As the root of a disk: making one takes rights that a test has not."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")

    def rename(path: Path, goal: Path) -> Path:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(staging_module, "_exchange", lambda one, other: False)
    with (
        pytest.raises(YoyoError, match=r"cannot be replaced .* Choose another name"),
        staged_folder(target, overwrite=True) as staging,
    ):
        (staging / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_that_is_killed_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """Killed just before and just after the exchange, by its own hand; then a run clears up."""
    target = tmp_path / "model"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from mergekit_yoyo import staging\n"
        "exchange, when = staging._exchange, sys.argv[2]\n"
        "def killed(one, other):\n"
        "    if when == 'before':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done = exchange(one, other)\n"
        "    if when == 'after':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return done\n"
        "staging._exchange = killed\n"
        "with staging.staged_folder(Path(sys.argv[1]), overwrite=True) as folder:\n"
        "    (folder / 'a').write_text(when)\n"
    )
    target.mkdir()
    (target / "a").write_text("old")
    for when, status, left in (
        ("before", -9, "old"),
        ("after", -9, "after"),
        ("never", 0, "never"),
    ):
        done = subprocess.run([sys.executable, "-c", script, str(target), when], check=False)
        assert done.returncode == status
        assert (target / "a").read_text() == left
        assert len(list(tmp_path.iterdir())) == (1 if when == "never" else 2)


def test_an_old_folder_that_a_crash_left_aside_is_moved_back(tmp_path: Path) -> None:
    target, aside = tmp_path / "model", tmp_path / ".model.replaced-abcdef"
    aside.mkdir()
    (aside / "a").write_text("old")
    with staged_folder(tmp_path / "model", overwrite=True) as folder:
        assert (target / "a").read_text() == "old"
        with staged_folder(tmp_path / "model", overwrite=True) as other:  # leaves the first alone
            (other / "a").write_text("other")
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"
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


def test_the_folder_one_stands_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    for place in ("model", "model/inner"):
        monkeypatch.chdir(tmp_path / place)
        with (
            pytest.raises(YoyoError, match="Run this from outside of it"),
            staged_folder(tmp_path / "model", overwrite=True),
        ):
            pass


def test_what_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for target, needed, message in [
        ("full", 0, "exists and is not empty"),
        ("file", 0, "expected a folder; got a file"),
        ("file/new", 0, "nothing can be written here"),
        ("new", 10**18, r"1000000\.0 TB are needed here"),
    ]:
        with (
            pytest.raises(YoyoError, match=message),
            staged_folder(tmp_path / target, overwrite=False, needed_bytes=needed),
        ):
            pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_is_told_in_a_sentence(tmp_path: Path) -> None:
    def fill() -> None:
        with (
            staged_folder(tmp_path / "model", overwrite=False) as staging,
            Path("/dev/full").open("w") as full,  # every write to it fails as on a full disk
        ):
            (staging / "a").touch()
            full.write("x")

    with pytest.raises(YoyoError, match="the disk filled up"):
        fill()
    assert not list(tmp_path.iterdir())


def test_bytes_are_told_in_the_units_of_disks() -> None:
    assert [format_bytes(n) for n in (12, 1500, 5 * 10**9)] == ["12 B", "1.5 KB", "5.0 GB"]

"""Whose files may be unpickled: real files of other users, real modes; these tests are root's."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from fptt_dist.training.process.own_files import create_closed, doubt_above, doubt_inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users: needs root")
OTHER, GROUP = 54321, 54322  # of nobody on this machine


@pytest.fixture(autouse=True)
def shared_mask() -> Iterator[None]:
    """Files of a group that may write them, as on many clusters."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder with files below it, open to be read."""
    folder = tmp_path / "state"
    (folder / "000" / "deep").mkdir(parents=True)
    for name in ("tuner.pkl", "000/error.pkl", "000/deep/file"):
        (folder / name).write_text("x")
    return folder


def test_what_is_our_own(state: Path) -> None:
    """With umask 002 too, where the group is this user's own."""
    assert stat.S_IMODE((state / "tuner.pkl").stat().st_mode) == 0o664
    assert (doubt_inside(state), doubt_above(state)) == (None, None)


@pytest.mark.parametrize("name", [".", "tuner.pkl", "000", "000/deep/file"])
def test_of_another_user(name: str, state: Path) -> None:
    os.chown(state / name, OTHER, -1)
    assert doubt_inside(state) == f"{state / name} belongs to user {OTHER}: type"
    state.chmod(0o700)  # who owns a file may have written it before
    assert doubt_inside(state) == f"{state / name} belongs to user {OTHER}: type"


def test_writable_by_others(subtests: pytest.Subtests, state: Path) -> None:
    modes = (0o666, 0, "everybody (mode 0666)"), (0o660, GROUP, f"its group {GROUP} (mode 0660)")
    for (mode, group, who), name in product(modes, (".", "tuner.pkl", "000", "000/error.pkl")):
        with subtests.test(who=who, name=name):
            os.chown(state / name, -1, group)
            (state / name).chmod(mode)
            said, typed = str(doubt_inside(state)).split(", and type ")
            assert said == f"{state / name} is writable by {who}: look whether all in {state} is your own"
            assert typed == f"chmod -R go-w {state}, or"
            os.system(typed.removesuffix(", or"))
            assert doubt_inside(state) is None


def test_in_a_closed_folder_nobody_else_writes(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    create_closed(folder)
    create_closed(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o775
    (folder / "file").write_text("x")
    os.chown(folder / "file", -1, GROUP)
    (folder / "file").chmod(0o666)
    assert doubt_inside(folder) is None
    folder.chmod(0o710)
    assert "file is writable by everybody" in str(doubt_inside(folder))


def test_a_link(state: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = state / "000" / "link"
    for target in ("elsewhere", "nowhere", "statement", "state/../elsewhere"):
        link.symlink_to(tmp_path / target)
        assert doubt_inside(state) == f"{link} is a symbolic link to a place outside {state}: type"
        link.unlink()
    link.symlink_to(link)
    assert doubt_inside(state) == f"{link} is a symbolic link to a place outside {state}: type"
    link.unlink()
    link.symlink_to(state / "tuner.pkl")
    assert doubt_inside(state) is None
    (state / "tuner.pkl").chmod(0o666)
    assert "tuner.pkl is writable by everybody" in str(doubt_inside(state))
    (state / "tuner.pkl").chmod(0o644)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert f"{link} belongs to user {OTHER}" in str(doubt_inside(state))


def test_above(state: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert doubt_above(state) == f"{tmp_path} is writable by everybody (mode 0777): type chmod o-w {tmp_path}, or"
    tmp_path.chmod(0o1777)  # as /tmp is: nobody may rename what is another's
    assert doubt_above(state) is None
    os.chown(tmp_path, OTHER, GROUP)
    tmp_path.chmod(0o2775)  # of a project: what others put there belongs to them
    assert doubt_above(state) is None
    os.chown(tmp_path, 0, 0)


def test_an_access_control_list(state: Path) -> None:
    """It lets another user write although the group is this user's own."""
    entry = b"\x02\x00\x00\x00"  # version 2; then owner, another user, group, mask and others: tag, rights, number
    for tag, rights, number in (
        (1, 6, 2**32 - 1),
        (2, 6, OTHER),
        (4, 4, 2**32 - 1),
        (16, 6, 2**32 - 1),
        (32, 4, 2**32 - 1),
    ):
        entry += tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + number.to_bytes(4, "little")
    try:
        os.setxattr(state / "tuner.pkl", "system.posix_acl_access", entry)
    except OSError:
        pytest.skip("a file system without access control lists")
    assert f"{state}/tuner.pkl is writable by others by its access control list (mode 0664): " in str(
        doubt_inside(state)
    )


def test_another_user_has_roots_files_and_their_own(state: Path) -> None:
    """Nobody is somebody, and root's group is not theirs."""
    user = pwd.getpwnam("nobody")
    alone = grp.getgrgid(user.pw_gid).gr_name == user.pw_name
    os.chown(state / "000", user.pw_uid, user.pw_gid)
    (state / "000").chmod(0o770)
    assert f"{state}/000 belongs to nobody" in str(doubt_inside(state))
    closed = [above for above in state.parents if stat.S_IMODE(above.stat().st_mode) == 0o700]
    for above in closed:
        above.chmod(0o711)
    os.seteuid(user.pw_uid)
    try:
        found = doubt_inside(state)
    finally:
        os.seteuid(0)
        for above in closed:
            above.chmod(0o700)
    assert (found is None) == alone

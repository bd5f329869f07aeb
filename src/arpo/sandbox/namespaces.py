"""Creates a private view of the machine with namespaces: its own processes, network, users and a read-only root that
shows only selected paths.

Runs in the process that becomes the sandbox, before it imports the recipe's packages.
"""

import errno
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from arpo.sandbox import linux

INSIDE = 1000  # id of the ordinary user inside
NOBODY = 65534
SCRATCH = "/scratch"
FILES = "/scratch/files"  # holds all scratch folders; in the view of a call its own one covers them
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_BASE = "/tmp"  # where the new root is put together; exists everywhere, and is out of sight once it is entered
_OLD = "/.outside"


@dataclass(frozen=True, slots=True)
class View:
    """The visible files: `read` lists real paths, which keep their places; `links` lists symbolic links (place,
    target)."""

    read: tuple[str, ...]
    links: tuple[tuple[str, str], ...] = ()

    def plain(self) -> dict[str, Any]:
        return {"read": list(self.read), "links": [list(link) for link in self.links]}

    @classmethod
    def read_plain(cls, plain: dict[str, Any]) -> Self:
        return cls(tuple(plain["read"]), tuple((place, target) for place, target in plain["links"]))


def enter(view: View) -> None:
    """Become process 1 of new namespaces that show only `view`. The calling process waits and ends with the same
    status.

    Root needs no user namespace and drops its rights later (`become_nobody`), except on machines that require one.
    Raises OSError if the machine allows no namespaces.
    """
    spaces = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    try:
        if os.geteuid() != 0:
            raise PermissionError(errno.EPERM, "not root")
        linux.unshare(spaces)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        linux.unshare(spaces | linux.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{INSIDE} {user} 1")
        _write("/proc/self/gid_map", f"{INSIDE} {group} 1")
    _go_on_as_process_1()
    _change_root(view)


def _go_on_as_process_1() -> None:
    child = os.fork()
    if child:
        os.closerange(0, 3)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _change_root(view: View) -> None:
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("root", _BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    os.mkdir(_BASE + _OLD)
    linux.pivot_root(_BASE, _BASE + _OLD)
    os.chdir("/")
    for path in view.read:
        _show(path)
        linux.make_read_only(path)
    for place, target in view.links:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(target, place)
    for device in DEVICES:
        _show(device)
    os.mkdir(SCRATCH)
    linux.unmount(_OLD)
    os.rmdir(_OLD)


def _show(path: str) -> None:
    """Bind `path` of the old root to the same place."""
    source = _OLD + path
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))
    linux.mount(source, path, None, linux.MS_BIND | linux.MS_REC)


def mount_scratch(folders: Sequence[str], megabytes: int, files: int) -> None:
    """Mount a file system of bounded size in every folder. After this nothing can be mounted, and no other file
    written. (Devices still accept writes; their modes and times, which belong to the machine, cannot change.)"""
    for device in DEVICES:
        linux.make_read_only(device, devices=True)
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        options = f"size={megabytes}m,nr_inodes={files},mode=700"
        linux.mount("scratch", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    linux.mount(
        "none", "/", None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    )


def views(folders: Sequence[str], proc: int) -> list["CallView"]:
    """A view for each of the scratch folders, in which it is the only one. `proc` is a descriptor of any /proc. This
    needs no right: a process has all in a user namespace of its own. Raises OSError where the machine denies those to
    ordinary users."""
    return [_view_in_child(folder, proc) for folder in folders]


@dataclass(frozen=True, slots=True)
class CallView:
    """A user namespace and its mount namespace, as descriptors. They stay while calls come and go, since it takes the
    kernel a millisecond to make and to remove them. No user is mapped, so the rights in there cover no file."""

    users: int
    mounts: int

    def enter(self) -> None:
        """Move this process into the view for good. Whoever made a user namespace may enter it."""
        linux.setns(self.users, linux.CLONE_NEWUSER)
        linux.setns(self.mounts, linux.CLONE_NEWNS)
        linux.drop_capabilities()


def _view_in_child(folder: str, proc: int) -> CallView:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
            linux.mount(folder, FILES, None, linux.MS_BIND)
            opened = [os.open(f"self/ns/{kind}", os.O_RDONLY, dir_fd=proc) for kind in ("user", "mnt")]
            socket.send_fds(theirs, [b"V"], opened)
        except OSError as error:
            theirs.send(f"a view for each call: {error}".encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        message, descriptors, _, _ = socket.recv_fds(ours, 1000, 2)
    os.waitpid(child, 0)
    if len(descriptors) != 2:
        raise OSError(message.decode())
    return CallView(*descriptors)


def give_up_rights(needed: Sequence[str], folders: Sequence[str]) -> None:
    """Drop all capabilities and turn root into a user without rights, who owns `folders`. If that user could not read
    `needed` (a Python in root's home without a private root), the process keeps root's id, without capabilities."""
    if os.geteuid() == 0 and _can(os.setgroups, []) and all(map(_readable_to_nobody, needed)):
        for folder in folders:
            os.chown(folder, NOBODY, NOBODY)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.drop_privileges()


def _readable_to_nobody(path: str) -> bool:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        return os.access(path, os.R_OK, effective_ids=True)
    finally:
        os.seteuid(0)
        os.setegid(0)


def _can(change: Any, *arguments: Any) -> bool:
    try:
        change(*arguments)
    except OSError:  # root of a container that may not change users
        return False
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)

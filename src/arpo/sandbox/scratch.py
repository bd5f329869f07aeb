"""Scratch folders: empties them after every call, whatever a program left there, and watches those without a bounded
file system."""

import contextlib
import os
import shutil
import stat
import tempfile

OWNER_ONLY = 0o700
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEEPEST = 32  # folders in each other, where programs are watched: looking must stay cheap


def empty(folder: str) -> None:
    """Remove everything in `folder`, however deep, without recursion. No other process may work in it."""
    here = _opened(folder)
    way: list[str] = []  # from `folder` to `here`
    left = [_cleared(here)]  # by level: folders that are still to be removed
    try:
        while left[-1] or way:
            if left[-1]:
                name = left[-1][-1]
                way.append(name)
                inner = _opened(name, here)
                os.close(here)
                here = inner
                left.append(_cleared(here))
            else:
                above = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = above
                os.rmdir(way.pop(), dir_fd=here)
                left.pop()
                left[-1].pop()
    finally:
        os.close(here)


def is_untouched(folder: int) -> bool:
    """True if the file system mounted at `folder` (a descriptor) is empty. It reads no names."""
    system = os.fstatvfs(folder)
    return system.f_files - system.f_ffree == 1 and stat.S_IMODE(os.fstat(folder).st_mode) == OWNER_ONLY


def is_full(folder: int) -> bool:
    """True if no file, or nothing more in a file, can be written to the file system at `folder` (a descriptor)."""
    system = os.fstatvfs(folder)
    return system.f_bavail == 0 or system.f_ffree == 0


def _opened(name: str, place: int | None = None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=place)
    except PermissionError:  # a program took the right to look away from itself
        os.chmod(name, OWNER_ONLY, dir_fd=place)
        return os.open(name, _FOLDER, dir_fd=place)


def _cleared(place: int) -> list[str]:
    """Remove all files. Returns the folders."""
    os.fchmod(place, OWNER_ONLY)
    folders = []
    with os.scandir(place) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=place)
    return folders


def place_for(megabytes: int) -> str:
    """The place for scratch folders without a bounded mount: memory if it has twice the room that they can take (there
    files are created and removed a hundred times faster than on some disks), else the folder of temporary files."""
    memory = "/dev/shm"
    with contextlib.suppress(OSError):
        free = os.statvfs(memory)
        if free.f_bavail * free.f_frsize >= 2 * megabytes << 20 and os.access(memory, os.W_OK):
            return memory
    return tempfile.gettempdir()


def overflows(folder: str, most_bytes: int, most_files: int) -> bool:
    """True if `folder` holds more than these limits, as far as is visible while a program writes to it, or hides files
    in folders that are deeper than `DEEPEST` or cannot be read."""
    size = files = 0
    ahead = [(folder, 0)]
    while ahead:
        place, depth = ahead.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append((entry.path, depth + 1))
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > most_bytes or files > most_files or depth > DEEPEST:
                        return True
        except PermissionError:
            return True
        except OSError:  # gone meanwhile
            continue
    return False


def remove(folder: str) -> None:
    """Remove `folder` with everything in it, as far as possible."""
    with contextlib.suppress(OSError):
        empty(folder)
        os.rmdir(folder)


def copy(source: str, target: str) -> None:
    """Copy all files of `source` to a new folder. Links stay links; modes and times are not copied. Raises OSError,
    RecursionError."""
    os.mkdir(target)
    with os.scandir(source) as entries:
        for entry in entries:
            to = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), to)
            elif entry.is_dir():
                copy(entry.path, to)
            else:
                shutil.copyfile(entry.path, to)

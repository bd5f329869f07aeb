"""The files of this machine that the code inside may see: the interpreter, the standard library, installed packages and
shared libraries, and, where code may start programs, those of the system.

It sees no home, no project, no /etc and no /proc: only what imports need.
"""

import os
import site
import sys
import sysconfig
from collections.abc import Iterable

from arpo.sandbox.namespaces import View

SYSTEM = (
    "/lib",
    "/lib64",
    "/lib32",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
)

PROGRAMS = ("/bin", "/usr/bin")


def own_folder() -> str:
    """The folder of the program inside."""
    return os.path.dirname(os.path.realpath(__file__))


def interpreter() -> str:
    """The real path of this Python, without links."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def import_path() -> list[str]:
    """The folders of installed packages and of the standard library in this process, without the project's."""
    installed = {
        os.path.realpath(path) for path in (*sysconfig.get_paths().values(), *site.getsitepackages(), *_user_site())
    }
    folders = []
    for entry in sys.path:
        real = os.path.realpath(entry or ".")
        if os.path.exists(real) and (real in installed or _below(real, _library_folders())) and real not in folders:
            folders.append(real)
    return folders


def _user_site() -> list[str]:
    return [site.getusersitepackages()] if site.ENABLE_USER_SITE else []


def _library_folders() -> list[str]:
    prefixes = {
        os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    }
    return [os.path.join(prefix, folder) for prefix in prefixes for folder in ("lib", "lib64")]


def here(*, programs: bool = False) -> View:
    """The view for this interpreter; with `programs` (where code may start them) also of the system's programs."""
    paths = [interpreter(), *import_path(), *_library_folders(), own_folder()]
    real, links = [], []
    for path in (*SYSTEM, *(PROGRAMS if programs else ())):
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        paths.append(os.path.realpath(path))
    for path in paths:
        if os.path.exists(path):
            real.append(os.path.realpath(path))
    return View(tuple(_outermost(real)), tuple(link for link in links if not _below(link[0], real)))


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not _below(path, kept):
            kept.append(path)
    return kept


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)

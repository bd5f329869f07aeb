"""The command line of bubblewrap (`bwrap`), which creates the private view of the file system if it is installed."""

import os
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath

from arpo.sandbox.namespaces import DEVICES, INSIDE, SCRATCH, View

_SPACES = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
_SETUP_CAPABILITIES = (
    "CAP_SYS_ADMIN",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_CHOWN",
)  # dropped before any import


def executable() -> str | None:
    """The path of bwrap, or None."""
    return shutil.which("bwrap", path=os.defpath + ":/usr/local/bin:/usr/bin:/bin")


def command(bwrap: str, view: View, program: Sequence[str], *, own_users: bool) -> list[str]:
    """The command that runs `program` in a private view. `own_users` adds a user namespace, which everybody but root
    needs."""
    words = [bwrap, *_SPACES, "--as-pid-1", "--cap-drop", "ALL"]
    for capability in _SETUP_CAPABILITIES:
        words += ["--cap-add", capability]
    if own_users:
        words += ["--unshare-user", "--uid", str(INSIDE), "--gid", str(INSIDE)]
    for folder in _above([*view.read, *DEVICES, *(place for place, _ in view.links)]):
        words += ["--perms", "0755", "--dir", folder]  # bwrap's default opens them only to their owner
    for path in view.read:
        words += ["--ro-bind", path, path]
    for place, target in view.links:
        words += ["--symlink", target, place]
    for device in DEVICES:
        words += ["--dev-bind", device, device]
    return [*words, "--dir", SCRATCH, "--chdir", "/", "--", *program]


def _above(paths: Sequence[str]) -> list[str]:
    """The parent folders of `paths`, from the top down."""
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"/"}
    return sorted(folders - set(paths))

"""The setup that the trainer passes to the program inside the sandbox, as JSON on its command line."""

from dataclasses import dataclass
from typing import Any

from arpo.sandbox.limits import Limits
from arpo.sandbox.namespaces import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings of a sandbox. `WarmSandbox` builds them."""

    outer: str  # "bubblewrap", "namespaces" or "none"
    view: View
    scratch: str  # the folder of all scratch folders
    slots: int  # scratch folders, one for every concurrent call and a few more
    path: tuple[str, ...]  # search path of imports
    imports: tuple[str, ...]
    limits: Limits
    at_once: int  # maximum number of concurrent calls
    sessions: int  # maximum number of live sessions
    landlocked: bool
    bwrap: str = ""
    own_users: bool = True

    def plain(self) -> dict[str, Any]:
        return {
            "outer": self.outer,
            "view": self.view.plain(),
            "scratch": self.scratch,
            "slots": self.slots,
            "path": list(self.path),
            "imports": list(self.imports),
            "limits": self.limits.plain(),
            "at_once": self.at_once,
            "sessions": self.sessions,
            "landlocked": self.landlocked,
            "bwrap": self.bwrap,
            "own_users": self.own_users,
        }

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "Setup":
        lists = {key: tuple(plain[key]) for key in ("path", "imports")}
        parts = {"view": View.read_plain(plain["view"]), "limits": Limits.read(plain["limits"])}
        return cls(**{**plain, **lists, **parts})

"""What a docstring says about a function and its arguments: Google's `Args:` blocks and Sphinx's `:param x:` lines."""

import inspect
import re
from collections.abc import Callable
from typing import Any

SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?)\s*:\s*$")
GOOGLE = re.compile(r"^(\s+)\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
SPHINX = re.compile(r"^:param\s+(?:[\w\[\], |]+\s+)?(\w+)\s*:\s*(.*)$")


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description (paragraphs before the first section, as one text) and the description of each argument by name."""
    lines = (inspect.getdoc(function) or "").splitlines()
    about: list[str] = []
    arguments: dict[str, str] = {}
    section, current, indent = "", "", 0
    for line in lines:
        if found := SECTION.match(line):
            section, current, indent = found.group(1), "", 0
        elif found := SPHINX.match(line.strip()):
            section, current = "param", found.group(1)
            arguments[current] = found.group(2)
        elif line.strip().startswith(":return") or line.strip().startswith(":raise"):
            section = "other"
        elif section in ("Args", "Arguments", "Parameters"):
            found = GOOGLE.match(line)
            indent = indent or (len(found.group(1)) if found else 0)
            if found and len(found.group(1)) == indent:
                current = found.group(2)
                arguments[current] = found.group(3)
            elif current and line.strip():
                arguments[current] += f" {line.strip()}"
        elif section == "param" and line.strip():
            arguments[current] += f" {line.strip()}"
        elif not section:
            about.append(line)
    return " ".join(" ".join(about).split()), {name: text.strip() for name, text in arguments.items()}

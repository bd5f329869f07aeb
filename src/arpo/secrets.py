"""Keeps secrets from the environment out of every text that a model, a record or a log sees.

Knows by their names which environment variables hold secrets. Refuses to know which provider uses which.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from arpo.config import holds_password

SECRET = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
OPTION = re.compile(r"(^|_)(api_?key|secret|password|access_token|auth_token)$", re.IGNORECASE)
PARAMETER = re.compile(OPTION.pattern + "|^(key|token)$", re.IGNORECASE)
HEADER = re.compile(SECRET.pattern + "|^(proxy_)?authorization$|^cookie$", re.IGNORECASE)
BY_GROUP = {
    "headers": HEADER,
    "env": SECRET,
    "params": PARAMETER,
    "parameters": PARAMETER,
}  # a service receives the values of these groups
FILLED_IN = ("$", "{key}")  # mark a text whose secret comes from the environment
SHORTEST = 6  # characters: a shorter value could occur in a text by chance


def without_secrets(text: str) -> str:
    """`text` with the value of every secret environment variable replaced by the variable's name: `$SERPER_API_KEY`."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and SECRET.search(name):
            text = text.replace(value, f"${name}")
    return text


def secrets_in(options: Mapping[str, Any], secret_name: re.Pattern[str] = OPTION) -> Iterator[str]:
    """The names of a tool's options that hold a literal secret: "headers.Authorization". A URL may hold one too."""
    for key, value in options.items():
        name = str(key)
        if isinstance(value, Mapping):
            yield from (f"{name}.{place}" for place in secrets_in(value, BY_GROUP.get(name, OPTION)))
        elif isinstance(value, str) and not any(mark in value for mark in FILLED_IN):
            matches = secret_name.search(name.replace("-", "_")) and not name.endswith("_env")
            if matches or _secret_url(value):
                yield name


def _secret_url(text: str) -> bool:
    if not text.startswith(("http://", "https://")):
        return False
    try:
        return holds_password(text) or any(PARAMETER.search(name) for name, _ in parse_qsl(urlsplit(text).query))
    except ValueError:
        return False

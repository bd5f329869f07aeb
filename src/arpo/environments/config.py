"""The environment of a recipe, built: `environment: {use: "my_env:Game", options: {...}}`."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from arpo.environments import Environment
from arpo.environments.episodes import EnvironmentSource
from arpo.errors import ConfigError, nearest
from arpo.import_path import import_from_path
from arpo.options import UseWithOptions, build
from arpo.tools.gateway import ToolGateway
from arpo.tools.schemas import checked_schema

BUILT_IN = {
    "sql": "arpo.environments.sql:SqlEnvironment",
    "shell": "arpo.environments.shell:ShellEnvironment",
    "user": "arpo.environments.user:UserEnvironment",
    "puzzle": "arpo.environments.puzzle:PuzzleEnvironment",
    "gymnasium": "arpo.environments.games:GymnasiumEnvironment",
    "textarena": "arpo.environments.games:TextArenaEnvironment",
    "gateway": "arpo.environments.gateway:GatewayEnvironment",
    "openenv": "arpo.environments.openenv:OpenEnvEnvironment",
    "verifiers": "arpo.environments.verifiers:VerifiersEnvironment",
}


def build_environment(
    config: UseWithOptions | type[Environment], tool_gateway: ToolGateway, *, taken: Sequence[str] = ()
) -> EnvironmentSource:
    """The environment that a recipe names. One episode is made to check its options. Raises ConfigError."""
    if isinstance(config, UseWithOptions):
        if ":" not in config.use and config.use not in BUILT_IN:
            hint = f"{nearest(config.use, BUILT_IN)}, or an import path module:Class"
            raise ConfigError("no such environment", where="environment.use", value=config.use, hint=hint)
        use, options = BUILT_IN.get(config.use, config.use), config.options
        made_from: Any = import_from_path(use, "environment.use")
    else:
        made_from, use, options = config, config.__name__, {}
    if not (inspect.isclass(made_from) and issubclass(made_from, Environment)):
        hint = "Derive it from arpo.Environment"
        raise ConfigError("is no environment", where="environment.use", value=use, hint=hint)
    build(made_from, options, "environment", use).close()  # options that do not fit are reported now
    source = EnvironmentSource(made_from, partial(made_from, **options))
    names = [*taken, *(tool.name for tool in source.tools)]
    for tool in source.tools:
        tool.schema = checked_schema(tool, "environment")
        if names.count(tool.name) > 1 or source.name in names:
            hint = "set `name` on one of them"
            raise ConfigError(
                "two tools have one name, or one has that of the environment",
                where="environment",
                value=tool.name,
                hint=hint,
            )
    source.tell = lambda text, level: tool_gateway.tell(text, level)  # a run sets it later
    source.provider = tool_gateway.shared_by(source.tools, source.name, made_from.concurrency)
    return source

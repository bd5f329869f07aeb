"""Rewards that ask a service, which the run's tool gateway stands before: retries, pauses, rate, cache, budget and
accounts are those of tools.

Knows services as tools that the model is not offered. Refuses to know what they answer.
"""

from collections.abc import Sequence

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, ProviderError, RewardError
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase
from arpo.tools.config import ToolConfig, ToolsConfig
from arpo.tools.gateway import ToolGateway
from arpo.tools.settings import LimitsConfig

SERVICE_S = 300.0
"""The deadline of one request to a service that has none of its own."""


class ServiceReward:
    """Base of a reward, `async (task, transcript) -> Score`, that asks services.

    `services` are tools (`arpo.tools.with_defaults` or `@arpo.tool` makes one), which raise ProviderError where the
    service is down. A recipe's `options` may hold `limits` and `cache`, as at a tool (docs/tools.md).
    """

    services: Sequence[ToolBase] = ()
    limits: LimitsConfig = LimitsConfig()
    """Where those of its services differ from all tools'."""
    config: ToolConfig = ToolConfig(use="reward")  # with what the recipe says of cache and limits
    where: str = "reward.options"  # its options' place in the recipe
    gateway: ToolGateway | None = None  # of the run; None: one without cache and limits

    async def ask(self, task: Task, service: str, **arguments: object) -> str:
        """What `service` answers. It waits while the service is down.

        Raises ProviderError where this call alone fails (its leaf then has no score), RewardError where the service
        reports an error, ToolsStoppedError where nothing more can be asked.
        """
        if self.gateway is None:
            self.gateway = ToolGateway()
        tools = {tool.name: tool for tool in self.services}
        context = CallContext(task=task, deadline_s=SERVICE_S, seed=0)
        result = await self.gateway.call(tools, Call(name=service, arguments=arguments), context)
        if result.status in (CallStatus.UNAVAILABLE, CallStatus.TIMEOUT):
            raise ProviderError(result.text, provider=service)
        if result.status is not CallStatus.OK:
            raise RewardError(f"the service {service} of the reward: {result.text}")
        return result.text


def services_of(reward: object) -> Sequence[ServiceReward]:
    """The rewards that ask services in `reward`: itself, or those that it sums."""
    return [reward] if isinstance(reward, ServiceReward) else [*getattr(reward, "asks", ())]


def with_services(config: ToolsConfig, rewards: Sequence[ServiceReward], taken: Sequence[str]) -> ToolsConfig:
    """`config` for a gateway to the services of `rewards`, too, an entry for each reward. Raises ConfigError where a
    name is `taken`."""
    names = [*taken]
    for reward in rewards:
        for tool in reward.services:
            if tool.name in names:
                raise ConfigError(
                    "a tool or another service has this name", where="reward.options.name", value=tool.name
                )
            names.append(tool.name)
    return config.model_copy(update={"offered": (*config.offered, *(reward.config for reward in rewards))})

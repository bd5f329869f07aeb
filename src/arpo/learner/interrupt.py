"""A forward and backward pass that can be stopped in its middle: on a slow machine one takes minutes, and Ctrl-C should not.

Knows the layers of a decoder and their hooks. Refuses to know why something is to stop. Hooks matter most in the backward pass:
torch runs that outside of Python, where no signal is heard; a hook brings Python in once a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopped(Exception):
    """The pass was stopped; gradients hold a part of it."""


@contextmanager
def stoppable(decoder: Any, stop: Callable[[], bool]) -> Iterator[None]:
    """Forwards and backwards of `decoder` inside raise Stopped at the next layer once `stop` is true."""

    def check(*_: object) -> None:
        if stop():
            raise Stopped

    def watch_backward(_module: object, _given: object, output: Any) -> None:
        check()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(check)

    hooks = [layer.register_forward_hook(watch_backward) for layer in getattr(decoder, "layers", ())]
    try:
        check()
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""Training. The package itself can be called: `arpo.train(run)` is `arpo.train.pipeline.train(run)`, loaded when it is called."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, run: Any, **options: Any) -> Any:
        from arpo.train.pipeline import train

        return train(run, **options)


sys.modules[__name__].__class__ = _CallablePackage

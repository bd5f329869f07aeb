"""Training. The package itself can be called: `arpo.train(run)` is `arpo.train.pipeline.train(run)`, loaded when it is called.

A function of that name in `arpo` would be replaced by this package as soon as something imports `arpo.train.x`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from arpo.run import Run
    from arpo.train.callbacks import Callback, StepFunction


class _CallablePackage(ModuleType):
    def __call__(
        self,
        run: "Run | str | Path",
        *,
        out: "str | Path | None" = None,
        resume: bool = False,
        again: bool = False,
        callbacks: "Sequence[Callback | StepFunction]" = (),
        **options: Any,
    ) -> "Path":
        """Train, and return the folder of the run: `arpo.train.pipeline.train`, where the arguments are explained."""
        from arpo.train.pipeline import train

        return train(run, out=out, resume=resume, again=again, callbacks=callbacks, **options)


sys.modules[__name__].__class__ = _CallablePackage

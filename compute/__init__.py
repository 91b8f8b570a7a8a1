"""What owns the device: the model, its slots, and every decision about them.

`from compute import offload` is the way in. It is looked up when it is asked for: importing the
package imports neither torch nor transformers. Its file has another name, since a submodule
called `offload` would take the function's place in the package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute.offloaded import Offloaded, offload

__all__ = ["Offloaded", "offload"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from compute import offloaded

    return getattr(offloaded, name)

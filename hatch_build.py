"""The build hook: compiles the package's C files and takes them into the wheel, editable or not.

Without a C compiler the build succeeds all the same: torch's reference kernel and numpy serve then.
"""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface[Any]):
    """Called by hatchling before it packs a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = _kernel_build(Path(self.root))
        for library in build.SOURCE_OF:
            library.unlink(missing_ok=True)
        reason = build.compile_libraries()
        if reason:
            self.app.display_warning(f"nothing is compiled, experts run by torch alone: {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        for library in build.SOURCE_OF:
            build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")


def _kernel_build(root: Path) -> ModuleType:
    """compute/kernels/build.py of the tree that is built, which is on no path yet."""
    path = root / "compute" / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("kernel_build", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

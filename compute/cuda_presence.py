"""Whether there is a CUDA device for torch to compute on, asked without importing torch.

For whoever plans a run before a compute process is there; that process asks torch itself.
"""

import importlib.util
import os
import re
from pathlib import Path

#: The driver's nodes, of which a container may have only some, and the one that stands for them below
#: Windows. What /proc says is the host's, whether or not a container has a device.
_NODES = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")))


def has_cuda() -> bool:
    """A device's node that is not hidden from us, and a torch that was built for it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(node.exists() for node in _NODES) and torch_is_for_cuda()


def torch_is_for_cuda() -> bool:
    """Whether the installed torch says so of itself."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        about = Path(folder, "version.py")
        if about.is_file() and re.search(r"^cuda\b[^=]*=\s*['\"]", about.read_text(), re.MULTILINE):
            return True
    return False

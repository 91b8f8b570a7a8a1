"""An interrupted cell harms none that follows, and nobody outlives the kernel."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

NOTEBOOK = Path(__file__).with_name("notebook.py")


def test_after_an_interrupted_generate_the_next_one_gives_the_right_tokens(store_4bit: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", str(NOTEBOOK), str(store_4bit), "20", "7"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[0]) >= 16


KERNEL = """
import sys
from compute import offload
model, tokenizer = offload(sys.argv[1], slots=12)
prompt = tokenizer("There was once a wolf who", return_tensors="pt")
print("ready", flush=True)
model.generate(**prompt, max_new_tokens=400)
"""


def test_a_kernel_that_dies_in_the_middle_of_a_cell_leaves_nobody(store_4bit: Path) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-P", "-c", KERNEL, str(store_4bit)], stdout=subprocess.PIPE, env={**os.environ}
    )
    with kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"ready\n"
        children = psutil.Process(kernel.pid).children()
        time.sleep(0.2)
        kernel.send_signal(signal.SIGKILL)
    assert len(children) == 1
    assert psutil.wait_procs(children, timeout=10)[1] == []

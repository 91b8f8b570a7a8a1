"""A notebook in small: cells run in the main thread, Ctrl-C comes in the middle of one, the next one runs.

`python notebook.py STORE NUM_CELLS SEED`: each cell generates and is interrupted at a random time; the
cell after it must give the tokens of an undisturbed one. Prints how many cells were interrupted, and
generates on until it is killed.
"""

import random
import signal
import sys
import threading

import torch

from compute import offload


def main() -> None:
    store, num_cells, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    model, tokenizer = offload(store, slots=12, arrangement="emulated", link="60MB/s")
    prompt = tokenizer("There was once a wolf who", return_tensors="pt")

    def generate(num_tokens: int) -> list[int]:
        output = model.generate(**prompt, max_new_tokens=num_tokens, do_sample=False, repetition_penalty=1.0)
        return list(output[0].tolist())

    expected = generate(6)
    rng = random.Random(seed)
    num_interrupted = 0
    for _ in range(num_cells):
        alarm = threading.Timer(rng.uniform(0.005, 0.15), signal.raise_signal, [signal.SIGINT])
        alarm.start()
        try:
            generate(400)
        except KeyboardInterrupt:
            num_interrupted += 1
        alarm.join()
        assert generate(6) == expected
    sys.stdout.write(f"{num_interrupted} interrupted\n")
    sys.stdout.flush()
    while True:
        generate(400)


main()

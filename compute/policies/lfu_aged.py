"""lfu-aged: lfu whose counts fade by a twentieth a pass; the best of the classics on fine-grained models.

Rule: counts x 0.95 per token. Reconstructed: the token of the rule is a forward pass here, so that
a long prefill, which counts an expert once, does not wipe out what decoding has learnt.
"""

from compute.policies.base import CacheShape
from compute.policies.lfu import Lfu


class LfuAged(Lfu):
    def __init__(self, shape: CacheShape, decay: float = 0.95, reset: bool = False) -> None:
        super().__init__(shape, decay, reset)

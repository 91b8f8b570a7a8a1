"""belady-bypass: belady that may serve an expert without keeping it; the bound of all. Offline.

Of the residents and the newcomers together, those stay whose next use is nearest; a free slot is
never left empty. Source of the rule: the optimum with bypass, e.g. Michaud, "Some mathematical
facts about optimal cache replacement", TACO 13(4), 2016.
"""

from collections.abc import Container, Sequence

from compute.policies.belady import Belady


class BeladyBypass(Belady):
    def choose_admitted(self, missing: Sequence[int], num_free: int, held: Container[int]) -> list[int]:
        next_use = dict(zip(self._future[self._step], self._next_uses_now(), strict=True))
        newcomers = sorted(missing, key=next_use.__getitem__)
        leavers = self._heap.lowest(len(missing) - num_free, held)
        admitted = newcomers[:num_free]
        for newcomer, leaver in zip(newcomers[num_free:], leavers, strict=False):
            if next_use[newcomer] >= -self._heap.priority(leaver):
                break
            admitted.append(newcomer)
        return admitted

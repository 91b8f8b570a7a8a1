"""What a gate puts first, ranked where its logits are: the host waits for nothing."""

import torch
from torch import Tensor


def rank_on_device(logits: Tensor, chosen: Tensor, num_named: int) -> Tensor:
    """int64 [T, num_named], as `compute.predictors.ranking.rank`, of logits [T, E] and chosen [T, k].

    Among equal logits beyond the chosen ones any expert may come first.
    """
    chosen = chosen.sort(dim=1).values
    order = logits.gather(1, chosen).argsort(dim=1, descending=True, stable=True)
    first = chosen.gather(1, order)
    num_more = num_named - first.shape[1]
    if num_more <= 0:
        return first[:, :num_named]
    others = logits.scatter(1, chosen, float("-inf"))
    return torch.cat([first, others.topk(num_more, dim=1).indices], dim=1)

"""Some answers made by one `generate`: prompts padded on the left, each row sampled for itself.

`generate` only sees that a token has been chosen: the batch chooses as a logits processor, and says
as a stopping criterion which rows have ended. Runs in the compute process.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from launch.sampling import GREEDY
from launch.server.row import Row


class Batch(LogitsProcessor):  # type: ignore[misc]
    """Answers that share their forward passes."""

    def __init__(self, rows: Sequence[Row], pad_id: int) -> None:
        self.rows = rows
        self._pad_id = pad_id
        self._length = max(len(row.prompt.token_ids) for row in rows)

    def run(self, model: PreTrainedModel) -> None:
        """Until every row has ended. Raises what `generate` raises."""
        for row in self.rows:
            row.begin()
        token_ids, mask = self._padded(model.device)
        model.generate(
            input_ids=token_ids,
            attention_mask=mask,
            max_new_tokens=max(row.prompt.max_tokens for row in self.rows),
            num_beams=1,
            pad_token_id=self._pad_id,
            **GREEDY,
            logits_processor=LogitsProcessorList([self]),
            stopping_criteria=StoppingCriteriaList([self.ended]),
        )

    def __call__(self, token_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] under which greedy search takes what each row has chosen."""
        scores = torch.full_like(logits, float("-inf"))
        for index, row in enumerate(self.rows):
            chosen = self._pad_id
            if not row.has_ended:
                start = self._length - len(row.prompt.token_ids)
                chosen = row.advance(token_ids[index : index + 1, start:], logits[index : index + 1])
            scores[index, chosen] = 0.0
        return scores

    def ended(self, token_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """A stopping criterion: bool [rows]. A cancelled row ends here."""
        for row in self.rows:
            if row.prompt.is_cancelled and not row.has_ended:
                row.end("cancelled")
        return torch.tensor([row.has_ended for row in self.rows], device=token_ids.device)

    def _padded(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both [rows, longest prompt]."""
        token_ids = torch.full((len(self.rows), self._length), self._pad_id)
        mask = torch.zeros_like(token_ids)
        for index, row in enumerate(self.rows):
            start = self._length - len(row.prompt.token_ids)
            token_ids[index, start:] = torch.tensor(row.prompt.token_ids)
            mask[index, start:] = 1
        return token_ids.to(device), mask.to(device)

"""How the command line's words become keywords of `generate`, and what a context has room for.

Pure; the model's own defaults stay.
"""

from typing import TYPE_CHECKING

from launch.config import RunConfig
from launch.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Keywords = dict[str, bool | int | float]

#: Greedy is greedy: the model's own penalties and sampling settings are overruled.
GREEDY: Keywords = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def generation_keywords(job: Job | RunConfig) -> Keywords:
    """What `generate` is told beyond the model's generation config; one sequence, no beams."""
    keywords: Keywords = {"max_new_tokens": job.max_new_tokens, "num_beams": 1}
    if job.temperature == 0:
        keywords |= GREEDY
    elif job.temperature is not None:
        keywords |= {"do_sample": True, "temperature": job.temperature}
    if job.top_p is not None and job.temperature != 0:
        keywords |= {"do_sample": True, "top_p": job.top_p}
    if job.repetition_penalty is not None:
        keywords["repetition_penalty"] = job.repetition_penalty
    return keywords


def context_of(model: "PreTrainedModel") -> int | None:
    """Tokens that the model can attend to; None: its config does not say."""
    context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context


def check_length(prompt_tokens: int, max_new_tokens: int, context: int | None) -> None:
    """Raise ValueError unless the prompt and the new tokens fit the model's context."""
    if prompt_tokens == 0:
        raise ValueError("the prompt is empty for this model's tokenizer: pass --prompt TEXT")
    if context is None or prompt_tokens + max_new_tokens <= context:
        return
    raise ValueError(
        f"the prompt has {prompt_tokens} tokens and --max-new-tokens is {max_new_tokens}, "
        f"but the model's context holds {context}: pass a shorter prompt or fewer new tokens"
    )

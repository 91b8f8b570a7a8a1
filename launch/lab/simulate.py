"""`sidestage simulate`: traces replayed under policies; figures to the terminal, to JSON and to a picture."""

import json as json_text
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compute.comparison import Result, compare
from compute.policies import OFFLINE, find
from compute.replay import Scope
from compute.replay_worker import Cell, Foresight
from compute.timing_model import Link, Moved, Timing, timing
from launch.lab.advice import Advice, Seen, advise, best_policy, mean_rates
from launch.lab.config import SimulateConfig
from launch.lab.progress import progress
from launch.lab.subject import Subject, subject_of
from launch.output import write_json

Json = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One replay of a subject; `timing` where a link was stated."""

    subject: Subject
    result: Result
    timing: Timing | None

    @property
    def policy(self) -> str:
        return self.result.cell.policy

    @property
    def capacity(self) -> float:
        return self.result.cell.capacity

    @property
    def hit_rate(self) -> float:
        return self.result.outcome.hit_rate

    def as_json(self) -> Json:
        told: Json = {**self.result.as_json(), "tokens": self.subject.seen.num_tokens}
        if self.timing is None:
            return told
        num_tokens = self.subject.seen.num_tokens
        return told | {
            "stall_s": self.timing.stall_s,
            "tokens_per_second": self.timing.tokens_per_second,
            "token_s": self.timing.total_s / num_tokens,
            "t_star_s": self.timing.bound_s / num_tokens,
            "bound_tokens_per_second": self.timing.bound_tokens_per_second,
        }


def simulate_traces(config: SimulateConfig) -> None:
    """Do what `config` says. Raises ValueError with a sentence."""
    subjects = [subject_of(trace, config) for trace in dict.fromkeys(config.traces)]
    if config.advise and len({(each.num_layers, each.num_experts, each.top_k) for each in subjects}) > 1:
        raise ValueError(
            "--advise speaks of one model, and these traces are of several: name them one by one"
        )
    rows = _replayed(subjects, config)
    advice = _advised(rows, config) if config.advise else []
    _tell(subjects, rows, advice, config)
    if config.plot is not None:
        from launch.lab.plots import draw_rates

        draw_rates(rows, config.plot)
    if config.json is not None:
        told: dict[str, list[Json]] = {"results": [row.as_json() for row in rows]}
        if config.advise:
            told["advice"] = [dict(each.as_json()) for each in advice]
        write_json(config.json, json_text.dumps(told))


def _replayed(subjects: Sequence[Subject], config: SimulateConfig) -> list[Row]:
    scope = Scope(config.scope)
    cells = [
        Cell(subject.path, policy, capacity, scope, config.tokens, _foresight(policy, subject, config))
        for subject in subjects
        for capacity in subject.capacities
        for policy in config.policies
    ]
    of_path = {subject.path: subject for subject in subjects}
    with progress("replaying") as show:
        results = compare(cells, config.num_jobs, show)
    return [_row(of_path[result.cell.trace], result) for result in results]


def _foresight(policy: str, subject: Subject, config: SimulateConfig) -> Foresight | None:
    """None for the offline policies, too: they bound what can be had without prefetch."""
    if config.lookahead == 0 or policy in OFFLINE:
        return None
    link = subject.link
    stated = (link.rate, link.blob_bytes, link.layer_us) if link else None
    return Foresight(config.predictor, config.lookahead, stated)


def _row(subject: Subject, result: Result) -> Row:
    if subject.link is None:
        return Row(subject, result, None)
    return Row(subject, result, _timing(subject.seen, subject.link, result))


def _timing(seen: Seen, link: Link, result: Result) -> Timing:
    """The timing model's, or where guesses were replayed over the link, what that took."""
    foreseen = result.foreseen
    if foreseen is None:
        return timing(Moved(seen.num_tokens, seen.num_steps, result.outcome.misses), link)
    used, wasted, stall_s = (foreseen[name] or 0 for name in ("prefetch_used", "prefetch_wasted", "stall_s"))
    missed = foreseen["misses"] or 0
    bounds = timing(Moved(seen.num_tokens, seen.num_steps, int(missed), int(used), int(wasted)), link)
    return replace(bounds, stall_s=stall_s, total_s=seen.num_steps * link.layer_s + stall_s)


def _advised(rows: Sequence[Row], config: SimulateConfig) -> list[Advice]:
    """One for each capacity; the figures of several traces of one model are averaged."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.result.slots, []).append(row)
    return [_advice(group, config) for group in groups.values()]


def _advice(rows: Sequence[Row], config: SimulateConfig) -> Advice:
    subjects = list(dict.fromkeys(row.subject for row in rows))
    rates = mean_rates(
        [{row.policy: row.hit_rate for row in rows if row.subject is subject} for subject in subjects]
    )
    first, rate_of = subjects[0], None
    if config.lookahead and first.link:
        policy = best_policy(rates)
        rate_of = _rates_by_lookahead([row for row in rows if row.policy == policy], config)
    return advise(first.cache(rows[0].result.slots), rates, first.seen, first.link, rate_of)


def _rates_by_lookahead(rows: Sequence[Row], config: SimulateConfig) -> dict[int, float]:
    """One policy's tokens per second with every lookahead up to the one that was asked for."""
    cells = {
        (ahead, row.subject): row.result.cell._replace(
            foresight=_foresight(row.policy, row.subject, replace(config, lookahead=ahead))
        )
        for ahead in range(config.lookahead + 1)
        for row in rows
    }
    results = compare(list(cells.values()), config.num_jobs)
    seconds = dict.fromkeys(range(config.lookahead + 1), 0.0)
    for (ahead, subject), result in zip(cells, results, strict=True):
        assert subject.link is not None
        seconds[ahead] += _timing(subject.seen, subject.link, result).total_s
    num_tokens = sum(row.subject.seen.num_tokens for row in rows)
    return {ahead: num_tokens / each for ahead, each in seconds.items() if each > 0}


def _tell(
    subjects: Sequence[Subject], rows: Sequence[Row], advice: Sequence[Advice], config: SimulateConfig
) -> None:
    """Tables and advice; on stderr where stdout belongs to the JSON object."""
    from launch.lab.tables import print_rates

    file = sys.stderr if config.json == "-" else sys.stdout
    for subject in subjects:
        print_rates(subject.words, [row for row in rows if row.subject is subject], file)
    deaf = [name for name in config.policies if getattr(find(name), "needs_whole_probs", False)]
    unheard = [subject.label for subject in subjects if not subject.has_whole_probs]
    if deaf and unheard:
        file.write(
            f"{', '.join(deaf)} decided on choices alone for {', '.join(unheard)}: recorded without --probs\n"
        )
    for slots in {row.result.slots for row in rows} if config.scope == "layer" else ():
        if any(slots == row.subject.num_layers * row.subject.top_k for row in rows):
            file.write("with exactly top-k slots a layer every policy that always admits is the same\n")
    for each in advice:
        command = f"--policy {each.policy} --slots {each.slots} --lookahead {each.lookahead}"
        file.write(f"advice: sidestage run {command}: {each.reason}\n")

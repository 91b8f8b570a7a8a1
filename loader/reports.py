"""Reports: what clients tell of themselves, checked and shown to observers. Pure."""

from loader.clients import Client
from protocol.messages import Report, Reported

#: Of a Report: characters of its words, and how many counters.
MAX_ABOUT = 200
MAX_COUNTERS = 64

_NOTHING = Report("", (), (), b"")


def problem_of(report: Report, num_keys: int) -> str:
    """What is wrong with a report of a client whose store has `num_keys` experts; "" for nothing."""
    if len(report.about) > MAX_ABOUT or len(report.names) > MAX_COUNTERS:
        return f"a Report has at most {MAX_ABOUT} characters of words and {MAX_COUNTERS} counters"
    if len(report.values) != len(report.names):
        return f"a Report with {len(report.names)} names and {len(report.values)} values"
    if len(report.resident) > (num_keys + 7) // 8:
        return f"a Report with {len(report.resident)} bytes of bits for {num_keys} experts"
    return ""


def shown(client: Client, now_ns: int) -> Reported:
    """What an observer gets to see of a client."""
    told = client.report or _NOTHING
    age_us = (now_ns - client.reported_ns) // 1000 if client.report else -1
    return Reported(
        client=client.number,
        pid=client.pid,
        quota=client.quota,
        age_us=age_us,
        about=told.about,
        names=told.names,
        values=told.values,
        resident=told.resident,
    )

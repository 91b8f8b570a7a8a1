"""`sidestage serve` as its clients meet it: one real server, the official client, and rude ones."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from support.cli import GREEDY, run
from support.serving import KEY, PROMPT, RawStream, Server, serving

from compute.policies import DEFAULT

SLOTS = 48
QUEUE = 8
MODEL = "store-4bit"


@pytest.fixture(scope="module")
def server(store_4bit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is ready; `--batch 1`, so whoever does not get the turn waits."""
    folder = tmp_path_factory.mktemp("server")
    model = folder / MODEL
    model.symlink_to(store_4bit)
    with serving(folder, model, "--slots", str(SLOTS), "--queue", str(QUEUE), "--api-key", KEY) as started:
        started.await_ready()
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, as it comes."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60.0) as made:
        yield made


def error_of(answer: httpx.Response) -> dict[str, str | None]:
    """The error in OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


# --- the official client -----------------------------------------------------------------------


def test_the_official_client_gets_a_chat_answer(client: openai.OpenAI, server: Server) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=8,
        temperature=0,
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == server.text(max_tokens=8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.system_fingerprint


def test_the_official_client_streams_a_chat_answer_with_usage(client: openai.OpenAI, server: Server) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPT}],
            max_completion_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == server.text(max_tokens=8)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_the_official_client_streams_a_completion(client: openai.OpenAI, server: Server) -> None:
    chunks = list(
        client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == server.text(max_tokens=8)
    assert len(chunks) == 9


def test_the_official_client_reads_log_probabilities(client: openai.OpenAI, server: Server) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=3,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    for one in logprobs.content:
        assert [top.logprob for top in one.top_logprobs] == sorted(
            (top.logprob for top in one.top_logprobs), reverse=True
        )
        assert one.top_logprobs[0].token == one.token
        assert one.logprob < 0


def test_the_official_client_finds_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_the_client_of_the_documentation_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    program = page[page.index("from openai") :].partition("```")[0]
    program = program.replace("localhost:8000", f"127.0.0.1:{server.port}").replace("sidestage-tiny", MODEL)
    exec(program.replace("any, unless the server asks for one", KEY), {})
    assert len(capsys.readouterr().out) > 20


def test_the_official_client_reads_refusals_as_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here") as caught:
        client.completions.create(model="gpt-9", prompt="hello")
    assert caught.value.code == "model_not_found"


# --- what comes out ----------------------------------------------------------------------------


def test_greedy_text_is_that_of_run(server: Server, store_4bit: Path) -> None:
    ran = run("run", store_4bit, *GREEDY, "--max-new-tokens", "24", "--slots", "48", "--json", "-")
    answer = server.complete(max_tokens=24)
    assert answer["choices"][0]["text"] == ran.json["text"]
    assert answer["usage"]["completion_tokens"] == ran.json["new_tokens"] == 24


def test_the_same_seed_gives_the_same_text_and_another_another(server: Server) -> None:
    sampled = {"temperature": 0.9, "max_tokens": 16}
    first = server.text(seed=1, **sampled)
    assert first == server.text(seed=1, **sampled)
    assert first != server.text(seed=2, **sampled)


def test_the_text_ends_before_a_stop_string(server: Server) -> None:
    whole = server.text(max_tokens=16)
    stop = whole.split()[3]
    answer = server.complete(max_tokens=16, stop=["no such word", stop])
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_without_max_tokens_may_fill_what_the_model_allows(server: Server) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    answer = server.post("/v1/chat/completions", messages=messages, temperature=0, stop=", and")
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_token_ids_are_answered_as_their_text_is(server: Server) -> None:
    assert server.complete(prompt=[0, 5, 6], max_tokens=2)["usage"]["prompt_tokens"] == 3


# --- refusals ----------------------------------------------------------------------------------


def test_a_missing_and_a_wrong_key_are_refused(server: Server) -> None:
    for key in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, headers=key)
        assert answer.status_code == 401
        assert "API key is missing or wrong" in str(error_of(answer)["message"])
        assert error_of(answer)["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/nothing", 404, "there is nothing at GET /v1/nothing"),
        ("POST", "/v1/embeddings", 404, "there is nothing at POST /v1/embeddings"),
        ("GET", "/v1/completions", 405, "GET /v1/completions is not allowed"),
        ("DELETE", "/v1/models", 405, "DELETE /v1/models is not allowed"),
        ("GET", "/v1/models/other", 404, "the model 'other' is not served here"),
    ],
)
def test_what_is_not_there_is_refused(
    server: Server, method: str, path: str, status: int, words: str
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert words in str(error_of(answer)["message"])


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        (b'{"prompt": ', 400, None, "is not JSON"),
        (b'{"prompt": "a", "n": 2}', 400, "n", "n is not supported"),
        (b'{"prompt": "a", "model": "other"}', 404, "model", "the model 'other' is not served here"),
        (b'{"prompt": "%s"}' % (b"king " * 600), 400, "prompt", "the model's context holds 512"),
        (b'{"prompt": "a", "max_tokens": 512}', 400, "prompt", "max_tokens is 512"),
        (b'{"prompt": [99999]}', 400, "prompt", "not in the model's vocabulary of 2048"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    server: Server, body: bytes, status: int, param: str | None, words: str
) -> None:
    answer = server.client.post("/v1/completions", content=body)
    assert answer.status_code == status
    assert error_of(answer)["param"] == param
    assert words in str(error_of(answer)["message"])


def test_a_body_without_an_end_is_refused(server: Server) -> None:
    answer = server.client.post("/v1/completions", content=b" " * (16 * 2**20 + 1))
    assert answer.status_code == 413
    assert "larger than 16 MiB" in str(error_of(answer)["message"])


def test_a_refused_stream_has_a_status_and_no_events(server: Server) -> None:
    stream = RawStream(server, prompt="king " * 600)
    assert stream.status == 400
    assert b"context holds 512" in stream.body()


# --- turns -------------------------------------------------------------------------------------


def test_a_client_that_goes_cancels_its_answer(server: Server) -> None:
    cancelled = server.figures().get('sidestage_answers_total{reason="cancelled"}', 0)
    stream = RawStream(server, max_tokens=480)
    next(stream.events())
    stream.leave()
    server.await_figure('sidestage_answers_total{reason="cancelled"}', cancelled + 1)
    assert server.figures()["sidestage_requests_running"] == 0


def test_a_client_that_goes_while_it_waits_leaves_the_line(server: Server) -> None:
    with ahead(server):
        waiting = threading.Thread(target=impatient, args=(server,))
        waiting.start()
        server.await_figure("sidestage_requests_waiting", 1)
        waiting.join()
        server.await_figure("sidestage_requests_waiting", 0)


def impatient(server: Server) -> None:
    """A client that wants a whole answer at once, or none."""
    body = {"prompt": PROMPT, "max_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.5
        )


@contextmanager
def ahead(server: Server) -> Iterator[None]:
    """Somebody is answered all the while, until the block ends."""
    stream = RawStream(server, max_tokens=500)
    try:
        next(stream.events())
        yield
    finally:
        stream.leave()


def test_more_requests_than_may_wait_are_refused_with_429(server: Server) -> None:
    with ThreadPoolExecutor(QUEUE) as pool, ahead(server):
        waiting = [
            pool.submit(server.post, "/v1/completions", prompt="a", max_tokens=1) for _ in range(QUEUE)
        ]
        server.await_figure("sidestage_requests_waiting", QUEUE)
        answer = server.post("/v1/completions", prompt="a")
        assert answer.status_code == 429
        assert f"--queue {QUEUE}" in str(error_of(answer)["message"])
        assert answer.headers["retry-after"] == "1"
    assert [one.result().status_code for one in waiting] == [200] * QUEUE


def test_twenty_clients_of_whom_some_leave_are_all_answered_or_refused_and_nothing_is_left(
    server: Server,
) -> None:
    expected = server.text(max_tokens=4)
    crowd(server, expected)
    before = measured(server)
    crowd(server, expected)
    after = measured(server)
    figures = server.figures()
    assert figures["sidestage_requests_running"] == figures["sidestage_requests_waiting"] == 0
    # Who passed through last keeps its frame until the next order, so that nobody needs a message for it.
    num_transit = figures["sidestage_frames"] - figures["sidestage_slots"]
    assert figures["sidestage_frames_leased"] <= figures["sidestage_slots_used"] + num_transit
    assert after["fds"] == before["fds"]
    assert after["threads"] == before["threads"]
    assert after["bytes"] - before["bytes"] < 32 * 2**20
    assert server.text(max_tokens=4) == expected


def crowd(server: Server, expected: str) -> None:
    """Twenty at once: whole answers, streams, and streams that are left after their first event."""

    def whole() -> str:
        answer = server.post("/v1/completions", prompt=PROMPT, temperature=0, max_tokens=4)
        assert answer.status_code in (200, 429)
        return answer.json()["choices"][0]["text"] if answer.status_code == 200 else expected

    def streamed() -> str:
        stream = RawStream(server, max_tokens=4)
        assert stream.status in (200, 429)
        text = "".join(event["choices"][0]["text"] for event in stream.events())
        stream.leave()
        return text if stream.status == 200 else expected

    def left() -> str:
        stream = RawStream(server, max_tokens=400)
        assert stream.status in (200, 429)
        next(stream.events(), None)
        stream.leave()
        return expected

    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit((whole, streamed, left, left)[number % 4]) for number in range(20)]
        assert {answer.result() for answer in answers} == {expected}
    server.await_figure("sidestage_requests_running", 0)
    server.await_figure("sidestage_requests_waiting", 0)


def measured(server: Server) -> dict[str, int]:
    """What the server's three processes hold, once their connections have gone."""
    parent = psutil.Process(server.process.pid)
    processes = [parent, *parent.children()]
    until = time.monotonic() + 10
    while len(parent.net_connections()) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    return {
        "fds": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "bytes": sum(process.memory_info().rss for process in processes),
    }


# --- what is told ------------------------------------------------------------------------------


def test_the_metrics_tell_what_the_experts_and_the_clients_did(server: Server) -> None:
    server.complete(max_tokens=4)
    figures = server.figures()
    told = {name: figures[f"sidestage_{name}_total"] for name in ("lookups", "hits", "late", "misses")}
    assert told["lookups"] == told["hits"] + told["late"] + told["misses"] > 0
    assert 0 < figures["sidestage_slots_used"] <= figures["sidestage_slots"] == SLOTS
    assert figures["sidestage_frames"] > SLOTS
    assert figures["sidestage_read_bytes_total"] > 0
    assert figures[f'sidestage_evictions_total{{policy="{DEFAULT}"}}'] > 0
    for name in (
        "prefetch_issued_total",
        "prefetch_used_total",
        "stall_seconds_total",
        "loader_restarts_total",
    ):
        assert f"sidestage_{name}" in figures
    answers = figures["sidestage_time_to_first_token_seconds_count"]
    assert answers >= figures["sidestage_time_per_token_seconds_count"] > 0


def test_each_request_has_one_line_in_the_log(server: Server) -> None:
    before = server.log.count("\n")
    server.complete(max_tokens=3)
    server.client.get("/nowhere/at/all")
    until = time.monotonic() + 30
    while "GET /nowhere/at/all 404" not in server.log and time.monotonic() < until:
        time.sleep(0.02)  # a line is written when its answer has gone
    lines = server.log.splitlines()[before:]
    (answered,) = [line for line in lines if "11 + 3 tok" in line]
    assert "POST /v1/completions 200" in answered and answered.endswith(", length")
    assert len([line for line in lines if "GET /nowhere/at/all 404" in line]) == 1


def test_every_event_of_a_stream_is_json_and_the_last_is_done(server: Server) -> None:
    body = RawStream(server, max_tokens=2).body().decode()
    events = body.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    for event in events[:-1]:
        assert json.loads(event.removeprefix("data: "))["object"] == "text_completion"

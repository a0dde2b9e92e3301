"""Many clients at once, and clients and children that misbehave: everybody else gets the right answer."""

import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from requests_of_openai import MODALITY, file, text, user
from running_server import Server, metric, reading_children, slow_scan, wait_until

pytestmark = pytest.mark.slow  # servers that load the demo checkpoint

CLIENTS = 50


def test_fifty_clients_at_once_get_the_answers_that_they_get_alone(server, ct, mr_zip, dicom_files):
    scans = [
        ct,
        mr_zip.read_bytes(),
        *((dicom_files / name).read_bytes() for name in ("MR_small.dcm", "examples_overlay.dcm")),
    ]
    questions = [
        MODALITY,
        "Is this scan 2D or 3D?",
        "Which body part is shown?",
        "What is the finding?",
        "Describe this scan.",
    ]
    asked = [(scans[i % len(scans)], questions[i % len(questions)]) for i in range(CLIENTS)]

    def ask(scan_and_question):
        scan, question = scan_and_question
        with server.client() as client:
            completion = client.chat.completions.create(
                model=server.model, messages=user(file(scan), text(question)), max_tokens=12
            )
        return completion.choices[0].message.content, completion.usage

    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(ask, asked))
    alone = {key: ask(key) for key in set(asked)}
    assert together == [alone[key] for key in asked]
    with server.client() as client:
        batches = metric(client, "radfm_decode_batch_rows_count") - len(alone)
        assert batches < CLIENTS, "no two requests were answered in one batch"


def test_a_reading_child_that_is_killed_ends_its_own_request_alone(server, client, ct, tmp_path):
    scan = slow_scan(tmp_path)

    def ask_slow():
        with pytest.raises(openai.BadRequestError) as killed:
            client.chat.completions.create(model=server.model, messages=user(file(scan), text(MODALITY)))
        return killed.value.body["message"]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask_slow)
        wait_until(lambda: bool(reading_children(server)))
        for child in reading_children(server):
            os.kill(child, signal.SIGKILL)
        assert "the reading process was killed" in waiting.result()
    answer = client.chat.completions.create(model=server.model, messages=user(file(ct), text(MODALITY)))
    assert answer.choices[0].message.content == "CT"


def test_a_client_that_goes_away_ends_the_reading_of_its_scan(server, tmp_path):
    scan = slow_scan(tmp_path)
    body = json.dumps({"model": server.model, "messages": user(file(scan), text(MODALITY))}).encode()
    with open_connection(server) as connection:
        connection.sendall(head(server, len(body)) + body)
        wait_until(lambda: bool(reading_children(server)))
    wait_until(lambda: not reading_children(server))
    with server.client() as client:
        wait_until(lambda: metric(client, "radfm_chat_in_progress") == 0)


def open_connection(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def head(server: Server, length: int) -> bytes:
    host = server.url.removeprefix("http://")
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


# A server with small limits ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_server():
    running = Server(RADFM_QUEUE=2, RADFM_UPLOAD_SECONDS=2, RADFM_REQUEST_BYTES=1 << 20, RADFM_FILES_BYTES=1000)
    yield running
    running.stop()


def test_a_client_that_sends_slowly_holds_up_nobody_and_is_given_up(small_server):
    with open_connection(small_server) as slow:
        slow.sendall(head(small_server, 1000) + b"{")
        with small_server.client() as client:
            answer = client.chat.completions.create(model=small_server.model, messages=user(text(MODALITY)))
            assert answer.choices[0].message.role == "assistant"
        reply = ""
        while not reply.endswith("}}"):
            reply += slow.recv(1000).decode()
    assert reply.startswith("HTTP/1.1 408") and "took longer than 2 seconds" in reply


def test_one_request_more_than_the_queue_holds_is_told_to_come_back(small_server):
    with open_connection(small_server) as first, open_connection(small_server) as second, small_server.client() as client:
        for waiting in (first, second):
            waiting.sendall(head(small_server, 1000) + b"{")
        wait_until(lambda: metric(client, "radfm_chat_in_progress") == 2)
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model=small_server.model, messages=user(text(MODALITY)))
        assert int(full.value.response.headers["retry-after"]) >= 1 and full.value.code == "queue_full"
        wait_until(lambda: metric(client, "radfm_chat_in_progress") == 0)
        client.chat.completions.create(model=small_server.model, messages=user(text(MODALITY)))


def test_a_request_that_is_too_large_is_a_413_that_says_what_to_do(small_server):
    with small_server.client() as client, pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model=small_server.model, messages=user(file(bytes(2 << 20)), text(MODALITY)))
    assert large.value.status_code == 413 and "/v1/files" in large.value.body["message"]


def test_no_room_for_a_file_is_a_429_until_one_is_deleted(small_server):
    with small_server.client() as client:
        first = client.files.create(file=("a", bytes(800)), purpose="user_data")
        with pytest.raises(openai.RateLimitError, match="no room for more files"):
            client.files.create(file=("b", bytes(800)), purpose="user_data")
        client.files.delete(first.id)
        second = client.files.create(file=("b", bytes(800)), purpose="user_data", expires_after=expiry(1))
        wait_until(lambda: second.id not in [each.id for each in client.files.list()])


def expiry(seconds: int):
    return {"anchor": "created_at", "seconds": seconds}


def test_a_web_page_cannot_ask_a_server_without_a_key(small_server):
    for headers in ({"Origin": "https://example.org"}, {"Host": "example.org"}):
        refused = httpx.get(f"{small_server.url}/v1/models", headers=headers)
        assert refused.status_code == 403 and "API key" in refused.json()["error"]["message"]
    body = json.dumps({"model": small_server.model, "messages": user(text("Hello"))})
    simple = httpx.post(f"{small_server.url}/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})
    assert simple.status_code == 400 and "Content-Type" in simple.json()["error"]["message"]


# A server with a key --------------------------------------------------------------------------------------------------


def test_a_key_is_demanded_and_an_answer_in_progress_ends_before_the_server_stops(ct):
    server = Server("--api-key", "secret", "--model-name", "liver")
    assert server.model == "liver"
    for key in ("none", "secrets", "secre"):
        with server.client(api_key=key) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
    for path in ("/health", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200
    missing = httpx.post(f"{server.url}/v1/chat/completions", content=b"x")
    assert missing.status_code == 401 and missing.headers["www-authenticate"] == "Bearer"

    with server.client(api_key="secret") as client:
        events = client.chat.completions.create(
            model="liver", messages=user(file(ct), text("What is the finding?")), stream=True, n=8, temperature=2
        )
        next(iter(events))
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        ended = [event.choices[0].index for event in events if event.choices and event.choices[0].finish_reason]
        assert sorted(ended) == list(range(8))
        stopping.join()
    assert server.process.returncode in (0, -signal.SIGTERM)
    assert "secret" not in server.log and not re.search(r"Traceback|Error", server.log)
    with pytest.raises(ConnectionRefusedError):
        open_connection(server)

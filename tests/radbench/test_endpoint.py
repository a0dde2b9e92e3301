"""An OpenAI-compatible server that runs in this process: what it is sent, and what is made of its replies."""

import base64
import io
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from bench_data import build_data
from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from PIL import Image
from typer.testing import CliRunner

from radfm.cli.main import app as radfm
from radfm.medmd.schema import Message, Part
from radfm.radbench.conditions import SCAN, Request, ScanKey
from radfm.radbench.items import BenchError
from radfm.radbench.models import endpoint
from radfm.radbench.models.endpoint import Endpoint
from radfm.radbench.predictions import read_predictions
from radfm.scan_radfm import Scan

NAME = "some-model"
QUESTION = (Message("user", (Part("image"), Part("text", "Is this CT?"))),)


@dataclass
class Server:
    """How the server behaves, and the bodies of all requests."""

    url: str = ""
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of the next replies; then 200
    refused: str = ""  # a key of the body that makes the reply a 400
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        if self.statuses:
            raise HTTPException(self.statuses.pop(0), "busy")
        if self.refused in body:
            remedy = {"max_tokens": "use max_completion_tokens"}.get(self.refused, "")
            raise HTTPException(400, f"{self.refused} is not supported {remedy}")
        content = body["messages"][-1]["content"]
        images = sum(part["type"] == "image_url" for part in content)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": f" {images} images, {content[-1]['text']} "}}
        if body.get("logprobs") and self.logprobs:
            top = [{"token": token, "logprob": logprob} for token, logprob in self.logprobs]
            choice["logprobs"] = {"content": [{"token": top[0]["token"], "top_logprobs": top}]}
        return {"choices": [choice]}


@pytest.fixture
def server() -> Iterator[Server]:
    state, application = Server(), FastAPI()

    @application.post("/v1/chat/completions")
    async def complete(request: HttpRequest) -> dict[str, Any]:
        return state.reply(await request.json())

    running = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error"))
    socket = running.config.bind_socket()
    state.url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    yield state
    running.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "WAITS", (0, 0))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def open_endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, NAME, **{"max_new_tokens": 7, "slices": 3, **options})


def ask(model: Endpoint, *options: str, depth: int = 10) -> Any:
    key = ScanKey("a", 0)
    ramp = np.linspace(0, 3000, 20 * 20 * depth, dtype=np.float32).reshape(1, 20, 20, depth)
    request = Request("a", SCAN, QUESTION, (key,), options, (), True)
    (answer,) = model.answer(model.prepare([request], {key: Scan(ramp)}))
    return answer


def test_slices_arrive_as_8_bit_rgb_png_and_the_question_behind_them(server):
    answer = ask(open_endpoint(server))
    body = server.bodies[-1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (NAME, 0, 7)
    *images, question = body["messages"][0]["content"]
    assert question == {"type": "text", "text": "Is this CT?"}
    for part in images:
        image = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 20))
    assert len(images) == 3
    assert answer.text == "3 images, Is this CT?" and answer.prompt == "<image><image><image>Is this CT?"


def test_a_server_that_ignores_logprobs_is_reported_and_nothing_is_guessed(server):
    model = open_endpoint(server)
    assert ask(model, "yes", "no").likelihoods is None
    assert model.warnings == [f"{server.url} returns no log-probabilities: there are no likelihoods and no calibration."]
    assert "logprobs" not in server.bodies[-1]


def test_a_server_that_refuses_logprobs_is_reported_too(server):
    server.refused = "logprobs"
    model = open_endpoint(server)
    assert not model.gives_logprobs and ask(model, "yes", "no").likelihoods is None


def test_yes_and_no_get_the_shares_of_the_first_token(server):
    server.logprobs = [(" Yes", math.log(0.5)), ("yes", math.log(0.2)), ("No", math.log(0.1)), ("Maybe", math.log(0.1))]
    model = open_endpoint(server)
    likelihoods = ask(model, "yes", "no").likelihoods
    assert likelihoods["yes"].sum == pytest.approx(math.log(0.7), abs=1e-4)
    assert likelihoods["no"].sum == pytest.approx(math.log(0.1), abs=1e-4)
    assert ask(model, "CT", "MRI").likelihoods is None and model.warnings == []


def test_an_option_that_is_not_among_the_top_tokens_gets_no_share(server):
    server.logprobs = [("Yes", -0.1), ("Maybe", -3.0)]
    assert ask(open_endpoint(server), "yes", "no").likelihoods is None


def test_a_status_that_passes_is_waited_for(server):
    model = open_endpoint(server)
    server.statuses = [503, 429]
    assert ask(model).text == "3 images, Is this CT?"
    server.statuses = [503] * 3
    with pytest.raises(BenchError, match=r"does not answer \(status 503.*run the same command again"):
        ask(model)


def test_a_server_that_names_the_limit_otherwise_gets_that_name(server):
    server.refused = "max_tokens"
    ask(open_endpoint(server))
    assert server.bodies[-1]["max_completion_tokens"] == 7


def test_a_server_that_refuses_the_question_is_one_sentence_before_the_run(server):
    server.statuses = [401, 401]
    with pytest.raises(BenchError, match=r"refuses a question \(status 401"):
        open_endpoint(server)


def test_a_server_that_is_not_there_is_one_sentence():
    with pytest.raises(BenchError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:1/v1", NAME, 7, 3)


def test_the_key_of_the_environment_is_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert open_endpoint(server)._client.headers["authorization"] == "Bearer secret"


@pytest.mark.slow  # builds a data set and writes a report
def test_the_command_asks_an_endpoint(server, tmp_path):
    data = build_data(tmp_path, patients=2, volumes=1)
    arguments = ["bench", "run", "--endpoint", server.url, "--model", NAME, "--data", data, "--out", tmp_path / "out"]
    result = CliRunner().invoke(radfm, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["name"] == NAME and run["model"]["logprobs"] is False
    assert any("form likelihood were not asked" in line for line in run["warnings"])
    predictions = read_predictions(tmp_path / "out" / "predictions.jsonl")
    asked = [p for p in predictions if p.condition in (SCAN, "no image")]
    assert asked and not any(p.item.endswith("#likelihood") for p in asked)
    assert all(p.answer.startswith("0 images") == (p.condition == "no image") for p in asked)

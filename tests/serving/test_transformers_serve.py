"""`transformers serve` starts with this repository, whose remote code names its class, and answers about data URLs."""

import os
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest
from helpers import ROOT
from requests_of_openai import MODALITY, image, text, user
from running_server import wait_until

pytestmark = pytest.mark.slow  # a server that loads the demo checkpoint


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "radfm").symlink_to(ROOT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder / "radfm", "--trust-remote-code"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--device", "cpu", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**environment, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_up(url):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield url, str(folder / "radfm"), log
    finally:
        process.terminate()
        process.wait(30)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_transformers_serve_answers_about_data_urls_and_logs_none(transformers_server, ct, mr_zip):
    url, model, log = transformers_server
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        def ask(part):
            completion = client.chat.completions.create(model=model, messages=user(part, text(MODALITY)), max_tokens=8)
            return completion.choices[0].message.content.strip()

        assert ask(image(ct, "application/dicom")) == "CT"
        assert ask(image(mr_zip.read_bytes(), "application/zip")) == "MRI"
        with pytest.raises(openai.APIStatusError):
            ask(image(b"no scan at all"))
    wait_until(lambda: "the data URL: is no scan that can be read" in log.read_text())
    assert "base64," not in log.read_text() and "File name too long" not in log.read_text()

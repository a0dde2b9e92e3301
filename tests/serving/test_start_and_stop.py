"""What `radfm serve` refuses to start with, and how it ends when it is told to stop, at any moment."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from requests_of_openai import MODALITY, file, text, user
from running_server import KEY, Server, children, reading_children, slow_scan, start_process, wait_until


def test_off_loopback_a_key_is_demanded_before_anything_is_loaded(monkeypatch):
    from typer.testing import CliRunner

    from radfm.cli.main import app

    monkeypatch.delenv(KEY, raising=False)
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr == ("--host 0.0.0.0 lets other machines ask: set an API key, in RADFM_API_KEY or with --api-key.\n")


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line_and_status_2():
    from typer.testing import CliRunner

    from radfm.cli.main import app

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2 and "cannot be listened on" in result.stderr and result.stderr.count("\n") == 1


def has_socket(pid: int) -> bool:
    """Whether a process has opened a socket, by Linux' /proc."""
    with suppress(FileNotFoundError):  # a file that was closed meanwhile
        return any(os.readlink(file).startswith("socket:") for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.slow
def test_a_port_that_is_taken_while_the_model_is_loaded_is_one_line_and_status_2():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        process = start_process("--port", str(other.getsockname()[1]))
        wait_until(lambda: has_socket(process.pid))
        other.listen()
        _, log = process.communicate()
    assert process.returncode == 2 and "cannot be listened on" in log and log.count("\n") == 1


def is_importing(pid: int) -> bool:
    """Whether a process has loaded torch's library."""
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [is_importing, has_socket, children])
def test_a_server_that_is_stopped_while_it_starts_says_nothing(moment, number):
    """The signal goes to all its processes, as a terminal and a service manager send it."""
    process = start_process("--port", "0")
    wait_until(lambda: bool(moment(process.pid)))
    os.killpg(process.pid, number)
    _, log = process.communicate()
    # What a shell shows as 130 and 143.
    assert process.returncode in (-number, 128 + number)
    assert [line for line in log.splitlines() if "is served at" not in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scan_that_is_being_read_is_answered_before_the_server_stops(number, tmp_path):
    server = Server(RADFM_STOP_SECONDS=60)

    def ask():
        with server.client() as client:
            return client.chat.completions.create(
                model=server.model, messages=user(file(scan), text(MODALITY)), max_tokens=2
            )

    scan = slow_scan(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        wait_until(lambda: bool(reading_children(server)))
        os.killpg(server.process.pid, number)
        assert waiting.result().choices[0].finish_reason in ("stop", "length")
    assert server.process.wait(60) in (-number, 128 + number)

"""What strangers send over HTTP: nothing of it ends in the log, in another's session, or on a full disk."""

import json
import shutil
import socket
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

import pytest

import http_guard
import limits


class Answers(HTTPErrorProcessor):
    """Error statuses are answers."""

    def http_response(self, request, response):
        return response


def send(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, dict]:
    """Status, text and headers of one request; no text of a page's endless stream of events."""
    request = Request(address.rstrip("/") + path, body, {"content-type": "application/json", **headers})
    with build_opener(Answers).open(request, timeout=120) as response:
        endless = response.status == 200 and ("session_hash" in path or "/heartbeat/" in path)
        text = "" if endless else response.read().decode(errors="replace")
        return response.status, text, dict(response.headers)


def join(session_hash: str) -> bytes:
    return json.dumps({"fn_index": 0, "data": [], "session_hash": session_hash}).encode()


def test_a_page_gets_a_secret_that_scripts_cannot_read(served):
    _, _, headers = send(served, "/")
    assert headers["set-cookie"].startswith(f"{http_guard.COOKIE}=") and "HttpOnly" in headers["set-cookie"]
    _, _, framed = send(served, "/", **{"x-forwarded-proto": "https"})
    assert "SameSite=None; Secure; Partitioned" in framed["set-cookie"]


@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/data?session_hash={}", "/gradio_api/heartbeat/{}", "/gradio_api/queue/join"]
)
def test_a_session_hash_without_its_secret_opens_nothing(served, path):
    session_hash = f"of-somebody-{path[12:17]}"
    own = {"cookie": f"{http_guard.COOKIE}=own"}
    assert send(served, "/gradio_api/queue/join", join(session_hash), **own)[0] != 403
    body = join(session_hash) if path.endswith("join") else None
    for cookie in ("", f"{http_guard.COOKIE}=another"):
        status, text, _ = send(served, path.format(session_hash), body, cookie=cookie)
        assert status == 403 and "belongs to another browser" in text


def test_a_body_has_an_end(served):
    huge = json.dumps({"data": [{"path": "data:image/png;base64," + "A" * limits.BODY_BYTES}, "?"]}).encode()
    status, text, _ = send(served, "/gradio_api/call/ask_about_scan", huge)
    assert status == 413 and "upload the scan first" in text


def test_nothing_of_a_visitor_is_logged(served, capfd, ask, tmp_path):
    """A data: path over REST, hostile paths, a broken upload, a damaged file: the log holds no word of them."""
    secret = "Doe-Jane-1970"
    for path in (f"data:text/plain;base64,{secret}", f"/etc/{secret}", f"http://127.0.0.1/{secret}", secret * 300):
        body = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, secret]}).encode()
        status, text, _ = send(served, "/gradio_api/call/ask_about_scan", body)
        if status == 200:
            send(served, f"/gradio_api/call/ask_about_scan/{json.loads(text)['event_id']}")
    host = urlsplit(served)
    with socket.create_connection((host.hostname, host.port)) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name=files; filename=" + secret.encode()
        )
    (tmp_path / f"{secret}.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    with pytest.raises(Exception, match="Doe"):
        ask([tmp_path / f"{secret}.dcm"], "Which modality is this?")
    send(served, "/")
    logged = "".join(capfd.readouterr())
    assert secret not in logged and "Traceback" not in logged


def test_an_exception_is_logged_by_class_and_place(capsys):
    try:
        raise ValueError("Doe^Jane")
    except ValueError as error:
        http_guard.print_without_values(error)
    assert capsys.readouterr().err.startswith("ValueError at test_http.py:")


def test_a_full_disk_refuses_an_upload_with_a_sentence(served, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    status, text, _ = send(served, "/gradio_api/upload", b"x")
    assert status == 507 and "disk of this Space is full" in text


def test_an_upload_that_never_ends_is_given_up(served, monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 1)
    host = urlsplit(served)
    with socket.create_connection((host.hostname, host.port), timeout=60) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000000\r\n\r\n--b\r\n"
        )
        assert b" 408 " in line.recv(100)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"])
def test_no_file_of_the_machine_is_served(served, path):
    status, text, _ = send(served, f"/gradio_api/file={path}")
    assert status in (403, 404) and "root:" not in text


def test_the_page_works_on_after_all_this(ask, dicom_files):
    assert ask([dicom_files / "693_J2KI.dcm"], "Which imaging modality is this?")["answer"] == "CT"

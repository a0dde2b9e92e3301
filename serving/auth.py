"""Who may ask: the API key, and which hosts need one."""

import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from .errors import ApiError

# Open without a key: a load balancer asks whether the server lives, Prometheus reads numbers without a scan or a text.
OPEN_PATHS = ("/health", "/metrics")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check(path: str, headers: Mapping[str, str], api_key: str | None) -> None:
    """Raise `ApiError` unless a request may pass: 401 for a missing or wrong key; without a key, 403 for a web page.

    A web page that the user visits can send requests to 127.0.0.1, by name (DNS rebinding) or across origins; the browser
    says so in Host and Origin.
    """
    if path in OPEN_PATHS:
        return
    if api_key is None:
        origin, host = headers.get("origin", ""), urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if not is_loopback(host) or (origin and not is_loopback(urlsplit(origin).hostname or "")):
            raise ApiError(403, "Without an API key this server answers programs of its own machine only.")
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(key.strip().encode(), api_key.encode()):
        reason = "is missing" if not key else "is wrong"
        raise ApiError(401, f"The API key {reason}: send it as `Authorization: Bearer KEY`.", "invalid_api_key")

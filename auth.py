"""Who may use the service: API keys, and what is said when it is open to everyone."""

import hmac
import logging
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from config import Settings
from custom_logger import request_id
from gate import refuse
from responses import error_response

HEALTH = frozenset({"/", "/healthz", "/readyz"})
PAGE = "/ui"  # files that anyone may read; the page's own calls need a key

log = logging.getLogger("api")


class ApiKeys:
    """Asks for a key of ``STT_API_KEYS`` on every path but health and the page's files. Plain ASGI.

    Before a byte of a body is read, a WebSocket is refused at its handshake. A key comes as ``Authorization: Bearer
    KEY``; browsers cannot set a header on a WebSocket, so there (and only there) ``?api_key=KEY`` does as well.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.digests = app, [_digest(key) for key in settings.key_list]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_ = not self.digests or scope["type"] == "lifespan" or _is_open(scope)
        if open_ or self._is_known(key := _presented(scope)):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            request_id.set(uuid4().hex)  # a request has one already
            host, port = scope.get("client") or ("-", 0)
            values = {"path": quote(scope["path"]), "status": 401, "client": f"{host}:{port}"}
            log.info("WS %(path)s %(status)d from %(client)s", values)
        found = "one that is not known" if key else "none"
        response = error_response(
            401, "InvalidApiKey", f"expected an API key as 'Authorization: Bearer KEY', found {found}",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
        if scope["type"] == "http":
            await refuse(response, receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await response(scope, receive, send)
        else:  # a server that cannot say more than 403
            await send({"type": "websocket.close", "code": 1008, "reason": "expected an API key"})

    def _is_known(self, key: str) -> bool:
        """All keys are compared, and digests of one length: the time that it takes tells nothing."""
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self.digests) > 0


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["type"] == "http" and (path in HEALTH or path == PAGE or path.startswith(f"{PAGE}/"))


def _presented(scope: Scope) -> str:
    """The key that a request or a handshake carries, or an empty text."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if scope["type"] == "websocket":
        return QueryParams(scope["query_string"]).get("api_key", "").strip()
    return ""


def is_public(host: str) -> bool:
    """Whether others than this machine can reach a server that listens on the host."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"

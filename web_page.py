"""The page at ``/ui``: the files of ``web/`` with headers that let it load nothing from elsewhere: docs/page.md."""

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from config import ROOT

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # kept, but asked for again: a new version shows at once
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class Page(StaticFiles):
    """The files of ``web/``; ``index.html`` for the folder."""

    def __init__(self) -> None:
        super().__init__(directory=ROOT / "web", html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or 304 if the browser has it, with our headers."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response

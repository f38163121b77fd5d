"""The server of a study: starlette behind uvicorn, the extra ``calibri[study]``."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from calibri.errors import StudyError
from calibri.files import plain_words
from calibri.signatures import typed
from calibri.study.deal import deal
from calibri.study.extra import of_the_extra
from calibri.study.invitations import participant
from calibri.study.pages import FILES, consent_page, file_bytes, message_page, pair_page
from calibri.study.records import CHOICES, QUESTIONS, StudyFolder
from calibri.study.votes import Votes

_PURPOSE = "Serving a study"
_MOST_BYTES = 4096  # of a form
_IMAGE = re.compile(r"[0-9a-f]{32}\.png", re.ASCII)

# Nothing but this server's own files is loaded, and no other page may frame or be told of it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A page that is asked for again, by the back button too, shows where the participant is now.
    "Cache-Control": "no-store",
}


@typed
def serve(study: str | Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a study until Ctrl-C or SIGTERM; it goes on where it was when it is served again.

    Put a proxy with TLS in front of it where the network is not your own: the invitations are
    secrets.

    Args:
        study: folder of ``create``.
        host: address to listen at; loopback by default.
        port: 0 for any free one; it is printed.

    Raises:
        StudyError: there is no such study, the extra is missing, or the port cannot be had.
    """
    uvicorn = of_the_extra("uvicorn", _PURPOSE)
    app = make_app(StudyFolder(Path(study)))
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        said = plain_words(error) if isinstance(error, OSError) else str(error)
        raise StudyError(
            f"Cannot serve at {host}, port {port}: {said}. Choose another --port or --host."
        ) from error
    with contextlib.closing(listener):
        print(f"serving {study} at http://{host}:{listener.getsockname()[1]}", flush=True)
        # Paths hold the tokens: they are in no log.
        settings = {"access_log": False, "log_level": "warning", "server_header": False}
        uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listener])


def make_app(folder: StudyFolder) -> Any:
    """Make the ASGI application of a study.

    Raises:
        StudyError: there is no such study, or the extra is missing.
    """
    starlette = of_the_extra("starlette.applications", _PURPOSE)
    routing = of_the_extra("starlette.routing", _PURPOSE)
    desk = _Desk(folder)
    routes = [
        routing.Route("/s/{token}", desk.show),
        routing.Route("/s/{token}/consent", desk.agree, methods=["POST"]),
        routing.Route("/s/{token}/vote", desk.vote, methods=["POST"]),
        routing.Route("/s/{token}/image/{name}", desk.image),
        routing.Route("/{name}", desk.file),
    ]
    handlers = {404: desk.not_found, StudyError: desk.not_saved}
    app = starlette.Starlette(routes=routes, exception_handlers=handlers)
    return _with_headers(app)


def _with_headers(app: Any) -> Any:
    """Put ``_HEADERS`` on whatever is answered, errors included."""
    extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = dict(message.get("headers", []))
                message = {**message, "headers": [*(dict(extra) | kept).items()]}
            await send(message)

        await app(scope, receive, send_more)

    return wrapped


class _Desk:
    """Answers requests; what touches the disk runs on a thread, many at a time."""

    def __init__(self, folder: StudyFolder) -> None:
        self._responses = of_the_extra("starlette.responses", _PURPOSE)
        self._in_thread = of_the_extra("starlette.concurrency", _PURPOSE).run_in_threadpool
        self._folder, self._study = folder, folder.read()
        self._votes = Votes(folder.votes)
        self._votes.count()  # a file that cannot be read is heard of now
        self._files = {name: file_bytes(name) for name in FILES}

    def show(self, request: Any) -> Any:
        """Show where the participant is; looking changes nothing."""
        number, base = self._number(request), _base(request)
        if number is None:
            return self.not_found(request, None)
        dealt = self._votes.dealt(number)
        if not dealt:
            return self._page(consent_page(self._study, base))
        answered = self._votes.answered(number)
        left = [i for i, d in enumerate(dealt) if d.pair not in answered]
        if not left:
            return self._page(message_page("Thank you", "All your answers are saved."))
        return self._page(pair_page(self._study, base, dealt, left[0]))

    def agree(self, request: Any) -> Any:
        """Note the consent, once, and go on."""
        number = self._number(request)
        if number is None:
            return self.not_found(request, None)
        self._votes.consent(number, lambda place: deal(self._study, place))
        return self._onward(request)

    async def vote(self, request: Any) -> Any:
        """Keep the answers about a pair and go on; the first that were given count."""
        form = await _form(request)
        return await self._in_thread(self._vote, request, form)

    def _vote(self, request: Any, form: dict[str, str] | None) -> Any:
        number = self._number(request)
        if number is None:
            return self.not_found(request, None)
        answers = _answers(form)
        pair = form.get("pair") if form else None
        if answers is None or pair not in {d.pair for d in self._votes.dealt(number)}:
            text = "This answer is not complete. Open your link again and answer both questions."
            return self._page(message_page("Not saved", text), 400)
        self._votes.add(number, str(pair), answers)
        return self._onward(request)

    def image(self, request: Any) -> Any:
        """Send an image; its name is random letters."""
        name = request.path_params["name"]
        if self._number(request) is None or not _IMAGE.fullmatch(name):
            return self.not_found(request, None)
        path = self._folder.images / name
        if not path.is_file() or path.is_symlink():
            return self.not_found(request, None)
        # Nothing that anybody else may see, and the same for as long as the study runs.
        kept = {"Cache-Control": "private, max-age=3600, immutable"}
        return self._responses.FileResponse(path, media_type="image/png", headers=kept)

    def file(self, request: Any) -> Any:
        """Send the style sheet or the script."""
        name = request.path_params["name"]
        if name == "favicon.ico":  # which browsers ask for unasked
            return self._responses.Response(status_code=204)
        if name not in FILES:
            return self.not_found(request, None)
        return self._responses.Response(self._files[name], media_type=FILES[name])

    def not_found(self, request: Any, error: Any) -> Any:
        """Say the same of whatever is not there, and of every token that is none."""
        text = "This is no address of a study. Check that the link of your invitation is whole."
        return self._page(message_page("Not found", text), 404)

    def not_saved(self, request: Any, error: Exception) -> Any:
        """Ask to try again where the file of votes cannot be used; why is not for participants."""
        text = "Your last answer could not be saved. Go back and send it again in a minute."
        return self._page(message_page("Not saved yet", text), 503)

    def _number(self, request: Any) -> int | None:
        return participant(request.path_params["token"], self._votes)

    def _page(self, html: str, status: int = 200) -> Any:
        return self._responses.HTMLResponse(html, status_code=status)

    def _onward(self, request: Any) -> Any:
        # 303: reloading the page that follows sends nothing again.
        return self._responses.RedirectResponse(_base(request), status_code=303)


def _base(request: Any) -> str:
    return f"/s/{request.path_params['token']}"


async def _form(request: Any) -> dict[str, str] | None:
    """Read a form; None where it is too large, or none."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            return None
    try:
        fields = parse_qs(data.decode("ascii"), strict_parsing=True, max_num_fields=8)
    except ValueError:
        return None
    return {name: values[-1] for name, values in fields.items()}


def _answers(form: dict[str, str] | None) -> dict[str, str] | None:
    """Find one known choice for each question; None where one is missing."""
    given = {question: (form or {}).get(question, "") for question in QUESTIONS}
    return given if all(choice in CHOICES for choice in given.values()) else None

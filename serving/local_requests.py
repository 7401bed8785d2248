"""Whether a request comes from a program of this machine, and not from a web page or through a proxy.

A server on a loopback address is reached by programs of this machine alone, but two of them carry requests of others: a
browser, for any page that it shows, and a reverse proxy. Both say so in the head of the request.
"""

from __future__ import annotations

import re

from fastapi import Request
from starlette.datastructures import Headers

from serving.errors import ApiError

__all__ = ["refuse_strangers"]

# Names of this machine. A page whose own name was made to lead here (DNS rebinding) sends that name.
_LOOPBACK_HOST = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_ADDED_BY_PROXIES = re.compile(r"forwarded|via|x-forwarded-.*|x-real-ip")
# same-origin: a page of this server; none: the user's own doing.
_OWN_SITES = ("same-origin", "none")


async def refuse_strangers(request: Request) -> None:
    """Dependency of routes that only this machine may use, where that is a matter of the address alone.

    Raises:
        ApiError: 403, the request comes from a web page or through a proxy.
    """
    if request.app.state.services.settings.only_this_machine_controls:
        why = _stranger(request.headers, request.url.scheme)
        if why:
            raise ApiError(
                403,
                f"Only programs of this machine may load and unload models; this request {why} (see --model-control).",
            )


def _stranger(headers: Headers, scheme: str) -> str:
    """What tells that somebody else asks; empty: nothing does."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not _LOOPBACK_HOST.fullmatch(hosts[0]):
        return "names another host"
    if any(_ADDED_BY_PROXIES.fullmatch(name) for name in headers):
        return "came through a proxy"
    own = f"{scheme}://{hosts[0]}".lower()
    if any(origin != own for origin in headers.getlist("origin")):
        return "comes from a web page of another origin"
    if any(site not in _OWN_SITES for site in headers.getlist("sec-fetch-site")):
        return "comes from a web page of another site"
    return ""

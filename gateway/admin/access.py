"""Who may use the admin listener where `server.admin_auth` is on: whoever shows a credential with the scope `admin`.

    Authorization: Bearer KEY     Prometheus, scripts
    Authorization: Basic …        browsers, which ask for a user and a password: any user, the key as the password
    the cookie of `auth.cookie`   from pages of the listener itself and of `cors.origins`

A browser sends a cookie, and a password that it was once told, by itself. So requests that change something are guarded
as they are without `admin_auth`. The host's name needs no guard: a name that an attacker points at this machine is
another site for the browser, which sends neither there.
"""

import base64
import binascii
import time
from typing import Final

from aiohttp import hdrs, web

from gateway.core.credential import Facts, Presented, address_key, cookie_allowed
from gateway.core.principal import Principal
from gateway.web.credentials import waited_for
from gateway.web.exchange import client_of, cookies_of, listed
from gateway.web.state import Gateway

SCOPE: Final = "admin"
CHALLENGE: Final = 'Basic realm="gateway: any name, and a key with the scope admin", charset="UTF-8"'


async def refusal(gateway: Gateway, request: web.BaseRequest) -> web.Response | None:
    """The answer to a request that may not use the admin listener, None for one that may."""
    address = client_of(request, gateway.snapshot.trusted)
    presented = _presented(gateway, request)
    try:
        principal = await _known(gateway, request, presented, address)
    except Exception as error:  # whatever a verifier raises, the door stays closed
        gateway.logger.error("admin_verifier_failed", exc_info=error)
        return web.Response(status=503, text="The credential cannot be checked now.\n", headers={"Retry-After": "2"})
    if principal is not None and SCOPE in principal.scopes:
        return None
    gateway.metrics.auth_failure("missing" if presented is None else "unknown" if principal is None else "scope")
    if gateway.addresses.request(address_key(address), gateway.clock.now()) is not None:
        return web.Response(status=429, text="Too many attempts from this address.\n", headers={"Retry-After": "60"})
    if principal is not None:
        return web.Response(status=403, text="This credential's scopes do not include 'admin'.\n")
    headers = {hdrs.WWW_AUTHENTICATE: CHALLENGE, hdrs.CACHE_CONTROL: "no-store"}
    return web.Response(status=401, text="A credential with the scope admin is required.\n", headers=headers)


def _presented(gateway: Gateway, request: web.BaseRequest) -> Presented | None:
    """The credential, not yet believed; None where there is none, or only a cookie that may come from another site."""
    scheme, _, rest = listed(request.headers, hdrs.AUTHORIZATION).strip().partition(" ")
    if scheme.lower() == "bearer":
        return Presented(rest.strip(), "header")
    if scheme.lower() == "basic":
        try:
            return Presented(base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2], "header")
        except (binascii.Error, ValueError):
            return Presented("", "header")
    auth = gateway.snapshot.config.auth
    cookie = cookies_of(request).get(auth.cookie, "")
    origin, site = listed(request.headers, hdrs.ORIGIN), listed(request.headers, "Sec-Fetch-Site")
    if not cookie or "cookie" not in auth.sources or not cookie_allowed(origin, site, gateway.snapshot.origins):
        return None
    return Presented(cookie, "cookie")


async def _known(
    gateway: Gateway, request: web.BaseRequest, presented: Presented | None, address: str
) -> Principal | None:
    if presented is None:
        return None
    facts, now = Facts(address, request.headers, cookies_of(request), {}), time.time()
    found = await waited_for(verifier.verify(presented, facts, now) for verifier in gateway.snapshot.verifiers)
    return found if isinstance(found, Principal) else None

"""Who a request acts for, where that takes more than a key in the configuration: tokens that somebody else signs,
an application that is asked, tickets.

A credential is known by a `Verifier` (`core/credential.py`); `web/credentials.py` asks one after the other.
"""

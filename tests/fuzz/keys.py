"""Keys and tokens of fuzzing as literal bytes, so that one seed always makes the same inputs. The private keys were
thrown away: nobody can make another good token with the public ones."""

from typing import Final

NOW: Final = 1_800_000_000
"""The moment, in Unix seconds, at which the tokens are good."""
PUBLIC_KEYS: Final = (
    b'{"keys": [{"n": "7SvkRoGyLPdYw4jO4Yk7d7CNo6c7I-6zYtPODfwEYAq5Nwn8kIQTSCh80LF9u1YBAudYsX_v1GI2BD2wLLUbbbkuvgTCE'
    b"aiXxgbTPJdLDN-LTqJ91wHSBo0aQxf80zbcfp75eDD_R2F8FcLABZ8POuammcqhEXZf7YJ_HkE4JemAHE0-hlcfIcasI3ylJsMiE17ipzFk-UC"
    b"RUQAauuAgmDcHA10OV5BufoApU3tuytcQ3aHWV5-xa3kwTfmiP87gKetpW6o2p9TAW6INRvuSidHrWW83tx72LWw945XSMcuMiBgAoKp_ihjRb"
    b'Fgc6_ly34bzDWAABBlPZ3b0FszTVw", "e": "AQAB", "kid": "rsa", "kty": "RSA"}, {"crv": "P-256", "x": "jlEzDaIjSpO1X'
    b'xAmUeNsT3snwfKdqwEIu2LQfyvgSMA", "y": "7e4soVdqUDJ9qdWAMTD7NhZ1wzmV79ofDkWYn84Pkf4", "kid": "P-256", "kty": "E'
    b'C"}, {"crv": "Ed25519", "x": "rYzPZuIlDFMrLgc5SRXpBT-9uQxbLye-jBG8QoLMwL0", "kid": "Ed25519", "kty": "OKP"}]}'
)
"""A JWKS with three keys, one of each type."""
OTHER_KEYS: Final = (
    b'{"keys": [{"crv": "P-521", "x": "AO_Sl9jb1ycMZlJSaIFapB1Zfjy5l8Yl1Kpq2SpEcqeBEZskIonPs0nYkF5ldmp1a2r7TcD4AnG6o'
    b'9gQAKFsirR-", "y": "AD4zWnirVOiXtxQ3KYezfI6L3skEJk5h3i-YgSn87UdlVzyoJSL_Oodh9SLkGpmDuW9uTXkgvzjEQyO5e-IePLkE",'
    b' "kid": "P-521", "kty": "EC"}]}'
)
PEMS: Final = (
    (
        b"-----BEGIN PUBLIC KEY-----\n"
        b"MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEdQAJ76VvMQ7zzERFGhEOj3ui2cH9Cvku\n"
        b"Y5hcLhLkCbArkAG5v7QlGFhUauYoLAbbbTO8XDqbQA2+EUZp1zykW5K+qnfKOciJ\n"
        b"cDtpi8jyQklr/o5s/kKVKH4LyKnOQXAv\n"
        b"-----END PUBLIC KEY-----\n"
    ),
    (
        b"-----BEGIN PUBLIC KEY-----\n"
        b"MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA7SvkRoGyLPdYw4jO4Yk7\n"
        b"d7CNo6c7I+6zYtPODfwEYAq5Nwn8kIQTSCh80LF9u1YBAudYsX/v1GI2BD2wLLUb\n"
        b"bbkuvgTCEaiXxgbTPJdLDN+LTqJ91wHSBo0aQxf80zbcfp75eDD/R2F8FcLABZ8P\n"
        b"OuammcqhEXZf7YJ/HkE4JemAHE0+hlcfIcasI3ylJsMiE17ipzFk+UCRUQAauuAg\n"
        b"mDcHA10OV5BufoApU3tuytcQ3aHWV5+xa3kwTfmiP87gKetpW6o2p9TAW6INRvuS\n"
        b"idHrWW83tx72LWw945XSMcuMiBgAoKp/ihjRbFgc6/ly34bzDWAABBlPZ3b0FszT\n"
        b"VwIDAQAB\n"
        b"-----END PUBLIC KEY-----\n"
    ),
)
"""Public keys."""
TOKENS: Final = (
    (
        b"eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL2tleXMuZXhhbXBsZS5jb20iLCJhdWQiOiJja"
        b"GF0Iiwic3ViIjoiYWxpY2UiLCJpYXQiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDA2MH0.J4m-3VHJXGh756xp6XOn6dKWwsxkbYb5E1HRaQb"
        b"ciD3V0elEb6Al9FKQ-Ni0tTxIRifKMXqey4QIOOMyrV2V-C6uPvqqhd_d3TnnIqI6KpCpIRacznhA-6iCOLVRmh75vUp0WZaUhRkoG-Fl4l_K_"
        b"wC9WzOg7yx_5tEwg6WjnOpyzZlGVvT4SXfJxJlOzYM3yxG2VsnwvWfz9ZMTMYLUPmhDcBYxU56EZpD69557_0iNHx2g_VRpgJiC4osJF4wHqKr"
        b"yu-3QLs3ii6McFeiwBeF4fQfbyfpJrE5p7cT5cl7FUQwZsjnS_7OG-Eixj1sns2BtAZ2UduLHjFfoTloRlA"
    ),
    (
        b"eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiIsImtpZCI6IlAtMjU2In0.eyJpc3MiOiJodHRwczovL2tleXMuZXhhbXBsZS5jb20iLCJhdWQiOi"
        b"JjaGF0Iiwic3ViIjoiYWxpY2UiLCJpYXQiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDA2MH0._7YMXj3BOetpQ0LpNQeQk9nbmyQJ5E2eWbm1"
        b"bIAbd3WY6ZC5TpB_HdKKbp0q06WwpSR7vYRMmW2TUwGocd6EUQ"
    ),
    (
        b"eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6IkVkMjU1MTkifQ.eyJpc3MiOiJodHRwczovL2tleXMuZXhhbXBsZS5jb20iLCJhdWQ"
        b"iOiJjaGF0Iiwic3ViIjoiYWxpY2UiLCJpYXQiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDA2MH0.X3UKeNG7bmLvG0TFDd6heK8BeA3pmG7po"
        b"l4WKjQ8JcDfHsLbi9-CXz3UbgwsfatKkjB8kGe-DHV4hyQd9O4PAg"
    ),
    (
        b"eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUuY29tIiwiYXVkIjoiY2hhdCIsInN1YiI6ImFsa"
        b"WNlIiwiaWF0IjoxODAwMDAwMDAwLCJleHAiOjE4MDAwMDAwNjB9.bTlwsPQsfL7ebTA-Dx3Je7mYfTShdfCh9gMmdJ_ru78"
    ),
)
"""Three by the public keys, and one by `tests.identity.tokens.SECRET`."""

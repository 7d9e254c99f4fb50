"""What a client behind a trusted proxy sends, and whose address that is: the same on both listeners.

127.0.0.1 and 10.0.0.0/8 are trusted. 6.6.6.6 is what a client says of itself.
"""

ADDRESSES: list[tuple[bytes, str]] = [
    (b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 9.9.9.9\r\n", "9.9.9.9"),  # as HAProxy does
    (b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 10.1.1.1\r\n", "9.9.9.9"),
    (b"x-forwarded-for: 9.9.9.9 , ,\r\nX-FORWARDED-FOR:\r\n", "9.9.9.9"),
    (b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: unknown\r\n", "127.0.0.1"),
    (b"X-Forwarded-For: [2001:db8::1]:4711\r\n", "2001:db8::1"),
    (b"X-Forwarded-For: ::ffff:9.9.9.9\r\n", "9.9.9.9"),
    (b"Forwarded: for=9.9.9.9\r\n", "9.9.9.9"),
    (b"Forwarded: for=6.6.6.6, for=9.9.9.9;proto=https;by=10.0.0.1, For=10.1.1.1\r\n", "9.9.9.9"),
    (b"Forwarded: for=6.6.6.6\r\nForwarded: for=9.9.9.9\r\n", "9.9.9.9"),
    (b'Forwarded: proto=http;for="[2001:db8::1]:4711"\r\n', "2001:db8::1"),
    (b'Forwarded: for="9.9.9.9:80" , ,\r\n', "9.9.9.9"),
    (b"Forwarded: for=6.6.6.6, for=_hidden\r\n", "127.0.0.1"),
    (b"Forwarded: for=6.6.6.6, for=unknown\r\n", "127.0.0.1"),
    (b"Forwarded: for=6.6.6.6, proto=http\r\n", "127.0.0.1"),
    (b'Forwarded: by="x, for=6.6.6.6"\r\n', "127.0.0.1"),
    (b'Forwarded: for=6.6.6.6;by="\r\nForwarded: for=9.9.9.9\r\n', "9.9.9.9"),
    (b'Forwarded: for=6.6.6.6;by=", for=9.9.9.9\r\n', "127.0.0.1"),
    (b"Forwarded: for=6.6.6.6;for=9.9.9.9\r\n", "127.0.0.1"),
    (b"Forwarded: for=9.9.9.9\r\nX-Forwarded-For: 9.9.9.9\r\n", "9.9.9.9"),
    # One of the two is the client's own; which one cannot be seen.
    (b"Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 9.9.9.9\r\n", "127.0.0.1"),
    (b"Forwarded: for=6.6.6.6" + b", for=10.0.0.1" * 40 + b"\r\n", "10.0.0.1"),
    (b"X-Forwarded-For: 6.6.6.6" + b"\r\nX-Forwarded-For: 10.0.0.1" * 40 + b"\r\n", "10.0.0.1"),
]

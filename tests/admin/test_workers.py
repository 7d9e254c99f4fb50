"""What an operator is told of other workers, whichever worker's listener is asked."""

import json

import pytest

from tests.admin.listening import listening

DELETE = b"DELETE /principals/key:web HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("answers", [[b"[2,1]", b"[0,3]"], [], [b"[2,1]", None]])
async def test_operator_is_told_what_all_workers_ended_and_who_was_silent(answers: list[bytes | None]) -> None:
    asked: list[bytes] = []

    async def ask(question: bytes) -> list[bytes | None]:
        asked.append(question)
        return answers

    async with listening() as (gateway, _, client):
        gateway.ask_workers = ask
        operator = client("127.0.0.1")
        operator.send(DELETE)
        head, _, body = (await operator.rest()).partition(b"\r\n\r\n")
    assert asked == [b"revoke key:web"]
    if None in answers:
        assert b" 503 " in head
        assert body == b"Workers that gave no answer: 1; ask again. Others ended 2 streams, 1 tickets.\n"
    else:
        ended = {"streams": 2, "tickets": 4} if answers else {"streams": 0, "tickets": 0}
        assert json.loads(body) == {"principal": "key:web"} | ended

"""All that reads bytes of strangers in process. A new reader belongs into one of these files."""

from typing import Final

from tests.fuzz import answers, client, credentials, requests, settings
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    **answers.targets(),
    **requests.targets(),
    **credentials.targets(),
    **settings.targets(),
    **client.targets(),
}
"""By name."""

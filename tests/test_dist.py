"""What `make dist` makes: an sdist that is enough to build the wheel from, and a wheel with both pages and the client.

`.ci/dist` installs the wheel in a bare venv and chats with it.
"""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway.web.static import static_endpoints
from tests.kit.program import ROOT

VERSION: str = json.loads((ROOT / "client" / "package.json").read_text("utf-8"))["version"]
"""The one place of the version; whatever else tells it is compared with this."""
LEFT_OUT = re.compile(r"node_modules|package-lock|\.mjs|\.npmrc|lib/package|test")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and with the wheel that was built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).with_name("uv")
    command = [
        str(uv),
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(folder),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=50)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The unpacked wheel."""
    with zipfile.ZipFile(dist / f"sse_gateway-{VERSION}-py3-none-any.whl") as archive:
        archive.extractall(dist / "wheel")
    return dist / "wheel"


def served(root: Path) -> set[str]:
    """The paths of the chat page and the client when they are read from this folder."""
    return {path for path, _ in static_endpoints(root)}


def below(folder: Path) -> set[str]:
    """The names of all files in a folder and in the folders in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_wheel_serves_the_files_that_the_checkout_serves(wheel: Path) -> None:
    assert served(wheel / "gateway") == served(ROOT)
    assert below(wheel / "gateway/pages/monitor") == below(ROOT / "pages/monitor")
    assert "/page/lib/markdown.js" in served(wheel / "gateway"), "the Markdown parser is missing; run: make page"


def test_wheel_has_every_module_and_nothing_beside_the_package(wheel: Path) -> None:
    modules = {name for name in below(ROOT / "gateway") if "__pycache__" not in name}
    assert modules <= below(wheel / "gateway")
    assert {path.name for path in wheel.iterdir()} == {"gateway", f"sse_gateway-{VERSION}.dist-info"}


def test_archives_leave_out_what_the_pages_are_made_with(dist: Path, wheel: Path) -> None:
    with tarfile.open(dist / f"sse_gateway-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names | below(wheel) if LEFT_OUT.search(name)]
    assert {"config.yaml", "pages/chat/index.html", "client/client.js", "LICENSE"} < names


def test_version_is_told_alike_everywhere() -> None:
    client = json.loads((ROOT / "client/package.json").read_text("utf-8"))
    assert (version("sse-gateway"), client["version"]) == (VERSION, VERSION)


def test_newest_released_section_of_the_changelog_is_of_this_version() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert released[:1] == [VERSION]

"""Writes the dashboards: `python -m grafana`."""

from grafana.boards import BOARDS, DIRECTORY, as_text


def main() -> None:
    """Every file of `dashboards/` is what `boards.py` says."""
    for name, board in BOARDS.items():
        (DIRECTORY / f"{name}.json").write_text(as_text(board), encoding="utf-8")


if __name__ == "__main__":
    main()

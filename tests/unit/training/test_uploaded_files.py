"""No name that a caller sends leaves the job's folder."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import InvalidRequestError
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.uploaded_files import check_files

NAMES = st.lists(st.sampled_from(["a", "b.csv", "..", ".", "", "问答", "\0", "c\\d", " "]), max_size=5)


@given(st.lists(NAMES.map("/".join) | st.text(max_size=12), max_size=4, unique=True))
def test_what_is_not_refused_lies_in_the_folder(names: list[str]) -> None:
    try:
        check_files(dict.fromkeys(names, b"x"), 100)
    except InvalidRequestError:
        return
    root = Path("/folder")
    for name in names:
        path = root / name
        assert ".." not in path.parts
        assert path.is_relative_to(root)
        assert path != root


def test_files_with_equal_folders_are_received_whole(tmp_path: Path) -> None:
    files = {"data/a.csv": b"1", "data/问答.txt": "问".encode(), "b": b""}
    check_files(files, 100)

    folder = JobFolders(tmp_path).receive(files)

    assert {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == files


def test_a_server_keeps_its_name_and_forgets_half_created_jobs(tmp_path: Path) -> None:
    folders = JobFolders(tmp_path)
    received = folders.receive({"a": b""})

    again = JobFolders(tmp_path)

    assert again.owner == folders.owner
    assert not received.exists()

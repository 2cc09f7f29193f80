import pytest

from afv_metric.files import replacing


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_survives_a_failure(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]

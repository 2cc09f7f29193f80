import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_python_in_the_readme_runs(code):
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["scores"].shape == (4,)
    assert names["img1"].grad.isfinite().all()
    assert names["maps"].shape == (4, 1, 96, 128)
    assert names["table"].shape == (4, 4)
    assert names["vectors"].shape[0] == 4


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []

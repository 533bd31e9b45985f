"""The first example of the README runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_first_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 25
    exec(code, {})
    assert capsys.readouterr().out

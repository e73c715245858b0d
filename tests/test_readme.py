"""The README's Python runs as printed."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    assert "torch.Size([32, 32, 32]) torch.Size([17])" in capsys.readouterr().out

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

guide = Path("docs/own-networks.md").read_text(encoding="utf-8")
net = re.search(r'^```python title="net.py"\n(.*?)^```', guide, re.DOTALL | re.MULTILINE)[1]
commands = (
    "python net.py",
    "flatminima surface --model net:build --data net:data --weights a.pt b.pt c.pt",
)
programs = {
    "python": [sys.executable],
    "flatminima": [sys.executable, "-c", "from flatminima.cli import main; main()"],
}

with TemporaryDirectory() as folder:
    Path(folder, "net.py").write_text(net, encoding="utf-8")
    for command in commands:
        program, *words = command.split()
        call = [*programs[program], *words]
        subprocess.run(call, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    report = Path(folder, "runs", "reports", "networks")
    figure = (report / "figure-surface.png").read_bytes()
    page = (report / "report.html").read_bytes()

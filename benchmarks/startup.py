"""What `import edgevision` and `edgevision --help` cost, against `python -c pass` in the same run.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from provenance import save, show

ROUNDS = 25
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import edgevision": [sys.executable, "-c", "import edgevision"],
    "edgevision --help": [sys.executable, "-m", "edgevision", "--help"],
    "edgevision convert --help": [sys.executable, "-m", "edgevision", "convert", "--help"],
}


def main() -> None:
    """Time the commands in turns, so that a busy moment falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append((time.perf_counter() - begun) * 1e3)
    base = statistics.median(times["python -c pass"])
    rows = [
        {
            "command": name,
            "median_ms": round(statistics.median(found), 1),
            "min_ms": round(min(found), 1),
            "over_python_ms": round(statistics.median(found) - base, 1),
            "runs": ROUNDS,
        }
        for name, found in times.items()
    ]
    show(rows)
    print(save("startup", rows))


if __name__ == "__main__":
    main()

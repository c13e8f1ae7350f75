from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgevision.errors import ConversionError, UnsupportedOpError
from edgevision_converters.child import run_python, run_tool


# functions that run_python calls in the child
def add(a, b):
    return {"sum": a + b, "pid": os.getpid()}


def refuse():
    raise UnsupportedOpError("no layer for op Frobnicate (node 'f')")


def fail():
    raise RuntimeError("the library's own words")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def threads():
    return os.environ["OMP_NUM_THREADS"]


def python(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def alive(pid):
    """Whether a process runs; a zombie waiting for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def test_run_tool_returns_output_of_both_streams(tmp_path):
    code = "import os, sys; print(os.getcwd(), flush=True); print('warned', file=sys.stderr)"
    done = run_tool(python(code), timeout_s=30, cwd=tmp_path, what="the tool")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [str(tmp_path), "warned"]


def test_run_tool_reports_exit_code_output_and_advice():
    code = "import sys; print('cannot read node 7'); sys.exit(3)"
    with pytest.raises(ConversionError, match=r"(?s)^the tool failed with exit code 3; try .* output:\ncannot read"):
        run_tool(python(code), timeout_s=30, what="the tool", advice="try another opset")


def test_run_tool_reports_a_crash_by_its_signal():
    with pytest.raises(ConversionError, match=r"the tool crashed \(SIGSEGV\)"):
        run_tool(python("import os; os.kill(os.getpid(), 11)"), timeout_s=30, what="the tool")


def test_run_tool_reports_a_missing_program(tmp_path):
    with pytest.raises(ConversionError, match=r"the tool cannot be started: .*No such file"):
        run_tool([tmp_path / "absent"], timeout_s=30, what="the tool")


def test_run_tool_quotes_only_the_end_of_long_output():
    code = "import sys\nfor i in range(20000): print('line', i)\nsys.exit(1)"
    with pytest.raises(ConversionError) as caught:
        run_tool(python(code), timeout_s=30, what="the tool")
    assert "line 19999" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_time_out_ends_the_tool_and_what_it_started(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"""
        import subprocess, sys, time, pathlib
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        pathlib.Path({str(pid_file)!r}).write_text(str(grandchild.pid))
        print("working", flush=True)
        time.sleep(120)
    """
    start = time.monotonic()
    with pytest.raises(ConversionError, match=r"(?s)the tool took longer than 3 s and was ended.*working"):
        run_tool(python(code), timeout_s=3, what="the tool")
    # far below the 120 s the tool would take
    assert time.monotonic() - start < 30
    wait_until(lambda: not alive(int(pid_file.read_text())))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_death_of_the_parent_end_the_child(tmp_path, stop):
    pid_file = tmp_path / "pid"
    module = tmp_path / "napping.py"
    module.write_text(f"import os, pathlib, time\ndef nap():\n    p = pathlib.Path({str(pid_file)!r})\n")
    with module.open("a") as stream:
        stream.write("    p.with_suffix('.tmp').write_text(str(os.getpid()))\n    p.with_suffix('.tmp').rename(p)\n")
        stream.write("    time.sleep(120)\n")
    code = """
        from edgevision_converters.child import run_python
        try:
            run_python("napping:nap", {}, timeout_s=120, what="the nap")
        except KeyboardInterrupt:
            raise SystemExit(42)
    """
    path = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen(python(code), env={**os.environ, "PYTHONPATH": path})
    wait_until(pid_file.exists)
    child = int(pid_file.read_text())
    assert alive(child)
    parent.send_signal(stop)
    assert parent.wait(30) == (42 if stop == signal.SIGINT else -stop)
    wait_until(lambda: not alive(child))


def test_run_python_calls_the_function_in_another_process():
    answer = run_python(f"{__name__}:add", {"a": 2, "b": 3}, timeout_s=60, what="adding")
    assert answer["sum"] == 5
    assert answer["pid"] != os.getpid()


def test_run_python_passes_variables():
    answer = run_python(f"{__name__}:threads", {}, timeout_s=60, what="asking", env={"OMP_NUM_THREADS": "3"})
    assert answer == "3"


def test_run_python_raises_our_errors_as_they_are():
    with pytest.raises(UnsupportedOpError, match=r"^no layer for op Frobnicate \(node 'f'\)$"):
        run_python(f"{__name__}:refuse", {}, timeout_s=60, what="converting")


def test_run_python_reports_foreign_errors_and_crashes():
    with pytest.raises(ConversionError, match=r"(?s)converting failed with exit code 1.*the library's own words"):
        run_python(f"{__name__}:fail", {}, timeout_s=60, what="converting")
    with pytest.raises(ConversionError, match=r"converting crashed \(SIGSEGV\)"):
        run_python(f"{__name__}:crash", {}, timeout_s=60, what="converting")

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from edgevision import registry as registry_module
from edgevision.dependencies import EXTRA_OF, installed, require
from edgevision.errors import EdgeVisionError, MissingDependencyError, UsageError
from edgevision.registry import Registry, unknown_name


def make() -> Registry:
    return Registry("dish", "edgevision.dishes", {"soup": "math:sqrt", "salad": "os.path:join"})


def test_a_name_is_imported_only_when_it_is_resolved():
    dishes = Registry("dish", "edgevision.dishes", {"broken": "no_such_module:x", "soup": "math:sqrt"})
    assert dishes.names() == ["broken", "soup"]
    assert "broken" in dishes
    assert dishes.resolve("soup")(9.0) == 3.0
    with pytest.raises(ModuleNotFoundError):
        dishes.resolve("broken")


def test_names_are_sorted_and_membership_takes_anything():
    dishes = make()
    assert list(dishes) == ["salad", "soup"]
    assert "soup" in dishes
    assert "stew" not in dishes
    assert None not in dishes


@pytest.mark.parametrize("name", ["sop", "soups", "Soup"])
def test_an_unknown_name_is_answered_with_the_near_ones(name):
    with pytest.raises(UsageError, match=rf"unknown dish '{name}': did you mean soup\?") as raised:
        make().resolve(name)
    assert raised.value.exit_code == 2
    assert isinstance(raised.value, ValueError)


def test_a_name_far_from_all_is_answered_with_all():
    assert unknown_name("dish", "xyz", ["soup", "salad"]) == "unknown dish 'xyz': choose from salad, soup"
    assert unknown_name("dish", "", {"soup": 1}) == "unknown dish '': choose from soup"


def test_third_parties_add_by_entry_point_and_do_not_replace(monkeypatch):
    points = [
        importlib.metadata.EntryPoint("stew", "math:floor", "edgevision.dishes"),
        importlib.metadata.EntryPoint("soup", "math:floor", "edgevision.dishes"),
    ]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == "edgevision.dishes" else [])
    dishes = make()
    assert dishes.names() == ["salad", "soup", "stew"]
    assert dishes.resolve("stew")(2.5) == 2
    assert dishes.resolve("soup")(9.0) == 3.0


def test_a_missing_module_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("edgevision.dependencies.find_spec", lambda name: None)
    for module, extra in EXTRA_OF.items():
        with pytest.raises(MissingDependencyError) as raised:
            require(f"{module}.inner", purpose="do the work")
        assert str(raised.value) == f'{module} is needed to do the work: pip install "edgevision[{extra}]"'
        assert isinstance(raised.value, ImportError)
        assert isinstance(raised.value, EdgeVisionError)
        assert not installed(module)
    with pytest.raises(MissingDependencyError, match=r"edgevision\[convert\]"):
        require("onnxruntime", purpose="do the work", extra="convert")


def test_a_module_that_is_there_is_imported():
    assert require("json", purpose="read") is sys.modules["json"]
    assert require("os.path", purpose="join") is sys.modules["os.path"]
    assert installed("json")


def test_a_module_that_cannot_be_imported_says_so_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "onnx.py").write_text("raise ImportError('libsomething.so.1: cannot open shared object\\nmore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(MissingDependencyError) as raised:
        require("onnx", purpose="read models")
    assert str(raised.value) == (
        "onnx is needed to read models; it is installed and cannot be imported (libsomething.so.1: cannot open shared "
        'object): pip install --force-reinstall "edgevision[convert]"'
    )


def test_ctrl_c_while_a_native_module_is_imported_stays_ctrl_c(tmp_path, monkeypatch):
    program = "try:\n    raise KeyboardInterrupt\nexcept BaseException as error:\n"
    (tmp_path / "onnx.py").write_text(f"{program}    raise ImportError('initialization failed') from error\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(KeyboardInterrupt):
        require("onnx", purpose="read models")


def test_importing_edgevision_imports_next_to_nothing():
    program = "import sys, edgevision; print([m for m in ('numpy', 'PIL', 'torch', 'onnx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_can_be_had_and_an_unknown_one_is_an_attribute_error():
    import edgevision

    for name in edgevision.__all__:
        assert getattr(edgevision, name) is not None
        assert name in dir(edgevision)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        edgevision.no_such_name  # noqa: B018 - looking it up is the test


def test_the_error_trees_exit_codes():
    from edgevision import errors

    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, EdgeVisionError)
    }
    assert {name for name, code in codes.items() if code == 2} == {"UsageError"}
    assert {name for name, code in codes.items() if code == 3} == {"CheckFailedError"}
    assert set(codes.values()) == {1, 2, 3}
    # the tree in the docstring is the tree
    assert all(name in str(errors.__doc__) for name in codes)

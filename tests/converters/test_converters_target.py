from __future__ import annotations

import pytest

from edgevision.errors import UsageError
from edgevision.runtime.backend import BACKENDS
from edgevision_calibration.scheme import SCHEMES
from edgevision_converters.target import CONVERTERS, PRECISIONS, PRECISIONS_OF, check_precision


def test_every_target_has_a_converter_a_backend_a_scheme_and_precisions():
    assert set(CONVERTERS.names()) == set(BACKENDS.names()) == set(SCHEMES) == set(PRECISIONS_OF)
    for name in CONVERTERS:
        assert callable(CONVERTERS.resolve(name))
    for precisions in PRECISIONS_OF.values():
        assert set(precisions) <= set(PRECISIONS)
        assert {"fp32", "int8"} <= set(precisions)


@pytest.mark.parametrize("target", sorted(PRECISIONS_OF))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_is_taken_or_refused_with_who_has_it(target, precision):
    if precision in PRECISIONS_OF[target]:
        check_precision(target, precision)
        return
    with pytest.raises(UsageError) as raised:
        check_precision(target, precision)
    told = str(raised.value)
    assert told.startswith(f"{target} runs no {precision} of its own")
    for having, precisions in PRECISIONS_OF.items():
        assert (having in told) == (precision in precisions or having == target)


def test_unknown_targets_and_precisions_are_named():
    with pytest.raises(UsageError, match=r"unknown target 'openvin': did you mean openvino\?"):
        check_precision("openvin", "fp32")
    with pytest.raises(UsageError, match="unknown precision 'INT8': choose from fp32, fp16, int8"):
        check_precision("openvino", "INT8")

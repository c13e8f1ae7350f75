from __future__ import annotations

import json

import numpy as np
import pytest
from calibration_nets import chain, pictures, table_of

from edgevision.errors import CalibrationError
from edgevision_calibration.observe import observe, observed_tensors
from edgevision_calibration.table import (
    SAMPLES,
    SCHEMA_VERSION,
    CalibrationTable,
    Digest,
    TensorStatistics,
    samples_per_picture,
)


def assert_equal(first, second):
    assert list(first.tensors) == list(second.tensors)
    for name, seen in first.tensors.items():
        other = second.tensors[name]
        np.testing.assert_array_equal(seen.channel_low, other.channel_low)
        np.testing.assert_array_equal(seen.channel_high, other.channel_high)
        np.testing.assert_array_equal(seen.histogram.counts, other.histogram.counts)
        assert (seen.low, seen.high, seen.count_per_channel) == (other.low, other.high, other.count_per_channel)
        assert (seen.histogram.exponent, seen.histogram.start) == (other.histogram.exponent, other.histogram.start)


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    table = table_of(chain())
    table.source = "pictures"
    again = CalibrationTable.open(table.save(tmp_path / "table"))
    assert_equal(table, again)
    for name, seen in table.tensors.items():
        np.testing.assert_array_equal(seen.channel_sum, again[name].channel_sum)
    assert (again.images, again.source, again.graph_sha256) == (table.images, "pictures", table.graph_sha256)


def test_the_batches_do_not_matter():
    graph, images = chain(), pictures(6)
    one_by_one = observe(graph, (images[at : at + 1] for at in range(6)), threads=1)
    at_once = observe(graph, [images], threads=1)
    assert one_by_one.images == at_once.images == 6
    for name, seen in one_by_one.tensors.items():
        # another batch size may sum in another order: float32's last digits
        np.testing.assert_allclose(seen.channel_high, at_once[name].channel_high, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.channel_mean, at_once[name].channel_mean, rtol=1e-4, atol=1e-5)
        assert seen.histogram.total == at_once[name].histogram.total


def test_statistics_are_those_of_the_activations():
    graph, images = chain(), pictures(5)
    table = observe(graph, [images], threads=1)
    seen = table[graph.input_name]
    np.testing.assert_array_equal(seen.channel_low, images.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(seen.channel_high, images.max(axis=(0, 2, 3)))
    # sums are accumulated in float32 within a picture
    np.testing.assert_allclose(seen.channel_mean, images.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert seen.histogram.total == images.size
    # what only a Relu reads is not quantized by any engine, so it is not observed
    assert set(table.tensors) == set(observed_tensors(graph))
    inputs_of_relu = [node.input[0] for node in graph.nodes if node.op_type == "Relu"]
    assert not set(inputs_of_relu) & set(table.tensors)


def test_nan_names_the_tensor():
    images = pictures(2)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"tensor '.*NaN"):
        observe(chain(), [images], threads=1)


def test_no_pictures_is_an_error():
    with pytest.raises(CalibrationError, match="no calibration images"):
        observe(chain(), [], threads=1)


def test_an_unobserved_tensor_is_an_error():
    with pytest.raises(CalibrationError, match="'nowhere' was not observed"):
        table_of(chain())["nowhere"]


@pytest.mark.parametrize("file", ["table.json", "table.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_damage_is_told(tmp_path, file, damage):
    folder = table_of(chain()).save(tmp_path)
    path = folder / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"\xff" * 100)
    with pytest.raises(CalibrationError, match="not a readable calibration table"):
        CalibrationTable.open(folder)


def test_a_newer_table_asks_for_an_upgrade(tmp_path):
    folder = table_of(chain()).save(tmp_path)
    path = folder / "table.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(CalibrationError, match="newer edgevision"):
        CalibrationTable.open(folder)


@pytest.mark.parametrize("width", [7, 8, 14, 28, 30])
def test_a_histogram_meets_every_column_and_channel_alike(width):
    shape = (1, 128, width, width)
    for axis in (1, 2, 3):
        values = np.zeros(shape, np.float32)
        np.moveaxis(values, axis, 0)[1] = 1.0
        statistics = TensorStatistics.empty(shape[1])
        statistics.update(Digest.of(values))
        histogram = statistics.histogram
        share = histogram.counts[histogram.centers > 0.5].sum() / histogram.total
        # one of so many; the last round of a stride may end before it
        np.testing.assert_allclose(share, 1 / shape[axis], rtol=0.1)
        assert histogram.total <= 2 * SAMPLES


def test_a_table_that_was_begun_is_gone_on_with():
    graph, images = chain(), pictures(6)
    whole = observe(graph, [images], threads=1)
    begun = observe(graph, [images[2:]], threads=1, begun=observe(graph, [images[:2]], threads=1))
    assert begun.images == 6
    for name, seen in whole.tensors.items():
        assert begun[name].pictures == 6
        # another batch size may sum in another order: float32's last digits
        np.testing.assert_allclose(seen.channel_high, begun[name].channel_high, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.channel_mean, begun[name].channel_mean, rtol=1e-4, atol=1e-5)
    # where nothing is left to run it is done
    assert observe(graph, [], threads=1, begun=begun).images == 6
    with pytest.raises(CalibrationError, match="another graph's"):
        observe(graph, [images], threads=1, begun=CalibrationTable("0" * 64))


def test_an_interval_is_found_once_and_anew_when_pictures_come():
    table, asked = table_of(chain()), []

    def method(histogram, *, symmetric):
        asked.append(symmetric)
        return -1.0, histogram.high

    name = next(iter(table.tensors))
    assert table.interval(name, method, symmetric=True) == table.interval(name, method, symmetric=True)
    table.interval(name, method, symmetric=False)
    assert asked == [True, False]
    seen = table[name]
    far = np.full((1, len(seen.channel_high), 2, 2), 2 * abs(seen.high) + 1, np.float32)
    table.update(name, Digest.of(far))
    assert table.interval(name, method, symmetric=True)[1] == far.max()


def test_many_pictures_bring_less_each_and_enough_together():
    assert samples_per_picture(1) == samples_per_picture(300) == SAMPLES
    assert samples_per_picture(0) == SAMPLES
    for count in (301, 500, 1000):
        assert SAMPLES // 4 <= samples_per_picture(count) < SAMPLES
        assert samples_per_picture(count) * count > 0.99 * 300 * SAMPLES
    assert samples_per_picture(100_000) == SAMPLES // 4


def test_a_digest_takes_about_as_many_values_as_it_is_asked_for():
    values = np.zeros((2, 64, 40, 40), np.float32)
    for samples in (1024, SAMPLES):
        digest = Digest.of(values, samples=samples)
        assert 0.9 * samples <= digest.values.shape[1] <= 2 * samples

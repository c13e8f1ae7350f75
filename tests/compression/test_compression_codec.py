"""The packed form: every file comes back as it was, and a hostile one is refused before it takes memory."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.compression import codec
from edgevision.compression.codec import DEFLATE, LZMA, MAGIC, SHARED, STORED, STREAMS, Segment, encode, unpack
from edgevision.compression.kmeans import kmeans, nearest
from edgevision.compression.packing import Weights, pack
from edgevision.errors import BundleError


def shared(rng: np.random.Generator, rows: int, columns: int, values: int, scaled: bool) -> Weights:
    codebook = np.sort(rng.normal(size=values)).astype(np.float32)
    indices = rng.integers(0, values, (rows, columns)).astype(np.uint8)
    scales = rng.uniform(0.1, 9, rows).astype(np.float32) if scaled else None
    return Weights(codec.shared_values(codebook, indices, scales), codebook, indices, scales)


@st.composite
def files(draw) -> tuple[bytes, list[Weights]]:
    """A file with tensors somewhere in it, aligned to nothing; of some tensors the file holds another dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors, parts = [], [rng.bytes(draw(st.integers(0, 40)))]
    for _ in range(draw(st.integers(0, 5))):
        rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 90))
        if draw(st.booleans()):
            weights = shared(rng, rows, columns, draw(st.integers(1, 256)), draw(st.booleans()))
        else:
            weights = Weights(rng.normal(size=(rows, columns)).astype(np.float32))
        dtype = draw(st.sampled_from(["<f4", "<f2"]))
        parts += [weights.values.astype(dtype).tobytes(), rng.bytes(draw(st.integers(0, 40)))]
        if draw(st.booleans()):
            parts.append(parts[-2])
        tensors.append(weights)
        if draw(st.booleans()):  # one that is nowhere in the file
            tensors.append(Weights(rng.normal(size=(rows, columns)).astype(np.float32)))
    return b"".join(parts), tensors


@settings(max_examples=80, deadline=None)
@given(files(), st.booleans())
def test_every_file_comes_back_as_it_was(made, pictures):
    data, tensors = made
    assert unpack(pack(data, tensors, pictures=pictures), len(data)) == data


@settings(max_examples=60, deadline=None)
@given(files(), st.data())
def test_damage_is_refused_or_changes_nothing_but_bytes(made, drawn):
    data, tensors = made
    packed = bytearray(pack(data, tensors))
    kind = drawn.draw(st.sampled_from(["flip", "cut", "append"]))
    at = drawn.draw(st.integers(0, len(packed) - 1))
    if kind == "flip":
        packed[at] ^= drawn.draw(st.integers(1, 255))
    elif kind == "cut":
        del packed[at:]
    else:
        packed += b"more"
    try:
        found = unpack(bytes(packed), len(data))
    except BundleError:
        return
    # only weights can differ: the hash of the whole file will tell
    assert kind == "flip"
    assert len(found) == len(data)


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("scaled", [False, True])
def test_shared_weights_take_little_more_than_their_entropy(dtype, scaled):
    rng = np.random.default_rng(0)
    codebook = np.linspace(-1, 1, 32).astype(np.float32)
    indices = np.clip(np.rint(rng.normal(15.5, 5, (256, 400))), 0, 31).astype(np.uint8)
    scales = rng.uniform(1, 2, 256).astype(np.float32) if scaled else None
    weights = Weights(codec.shared_values(codebook, indices, scales), codebook, indices, scales)
    data = b"head" + weights.values.astype(dtype).tobytes() + b"tail"
    share = np.bincount(indices.ravel()) / indices.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * indices.size / 8
    tables = 4 * (32 + (256 if scaled else 0))
    # Huffman's code is within a few percent of the entropy here, and cover and segment take 0.1 kB
    assert len(pack(data, [weights])) < 1.03 * entropy + tables + 150


def test_integers_and_floats_of_the_same_codebook():
    rng = np.random.default_rng(1)
    codebook = np.arange(-8, 8).astype(np.float32)
    indices = rng.integers(0, 16, (40, 90)).astype(np.uint8)
    scales = rng.uniform(1e-3, 1e-2, 40).astype(np.float32)
    integers = Weights(codec.shared_values(codebook, indices, None, "<i1"), codebook, indices)
    floats = Weights(codec.shared_values(codebook, indices, scales), codebook, indices, scales)
    for weights in (integers, floats):
        data = b"x" * 7 + weights.values.tobytes() + b"y" * 5
        packed = pack(data, [integers, floats])
        assert unpack(packed, len(data)) == data
        assert len(packed) < 40 * 90 * 0.52 + 500  # 4 bits each, and the factors


def test_sharing_that_does_not_give_the_very_bytes_is_not_used():
    rng = np.random.default_rng(2)
    weights = shared(rng, 10, 90, 16, scaled=False)
    assert weights.indices is not None
    wrong = Weights(weights.values, weights.codebook, (weights.indices + 1) % 16)
    data = weights.values.tobytes()
    assert unpack(pack(data, [wrong]), len(data)) == data


def test_pixels_pack_better_by_their_differences():
    y, x = np.mgrid[0:64, 0:64]
    rng = np.random.default_rng(3)
    picture = (128 + 90 * np.sin(x / 17)[..., None] * np.cos(y / 23)[..., None] + rng.normal(0, 2, (64, 64, 3))).astype(
        np.uint8
    )
    data = picture.tobytes()
    assert unpack(pack(data, pictures=True), len(data)) == data
    assert len(pack(data, pictures=True)) < 0.9 * len(pack(data))


def hostile(segments: list[Segment], streams: dict[str, tuple[int, int, bytes]]) -> bytes:
    return encode(segments, {name: streams.get(name, (STORED, 0, b"")) for name in STREAMS})


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize("coding", [DEFLATE, LZMA])
def test_a_bomb_takes_no_more_than_the_size_it_was_promised(coding):
    zeros = bytes(64 << 20)
    filters = codec.lzma_filters(0, 1000)
    bomb = deflated(zeros) if coding == DEFLATE else lzma.compress(zeros, lzma.FORMAT_RAW, filters=filters)
    assert len(bomb) < 200_000
    packed = hostile([], {"rest": (coding, 0, bomb)})
    del zeros
    tracemalloc.start()
    with pytest.raises(BundleError, match="another length"):
        unpack(packed, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the packed file once or twice, and nothing like 64 MB
    assert peak < 2_000_000


BOMB = Segment(0, SHARED, 0, 2**31, 2**31, 1)


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04" + bytes(100), "begins with"),
        (hostile([BOMB], {}), "more than the 100 bytes"),
        (hostile([Segment(2**63, 0, 0, 1, 1, 0)], {}), "more than the 100 bytes"),
        (hostile([Segment(0, 3, 0, 1, 1, 1)], {}), "unknown kind"),
        (hostile([Segment(0, 1, 9, 1, 1, 1)], {}), "unknown kind"),
        (hostile([Segment(0, 1, 0, 1, 1, 300)], {}), "unknown kind"),
        (hostile([Segment(0, 1, 0, 0, 1, 1)], {}), "without weights"),
        (hostile([Segment(0, 0, 0, 1, 1, 1)], {}), "without weights"),
        (hostile([], {"rest": (7, 0, bytes(100))}), r"coding 7\.0"),
        (hostile([], {"rest": (LZMA, 99, bytes(100))}), r"coding 2\.99"),
        (hostile([], {"rest": (LZMA, 0, b"\xff" * 90)}), "damaged"),
        (hostile([], {"rest": (DEFLATE, 0, b"\xff" * 90)}), "damaged"),
        (hostile([], {"rest": (STORED, 0, bytes(99))}), "another length"),
        (hostile([], {"rest": (STORED, 0, bytes(101))}), "another length"),
        (hostile([], {"rest": (DEFLATE, 0, deflated(bytes(100)) + b"x")}), "another length"),
        (hostile([], {"rest": (STORED, 0, bytes(100))}) + b"x", "follow its end"),
        (struct.pack("<4sI", MAGIC, 2**32 - 1) + bytes(40), "ends before"),
        (
            hostile(
                [Segment(0, SHARED, 0, 1, 25, 1)],
                {"tables": (STORED, 0, bytes(4)), "indices": (STORED, 0, b"\x01" * 25)},
            ),
            "damaged",
        ),
    ],
)
def test_hostile_files_are_refused(packed, why):
    with pytest.raises(BundleError, match=why):
        unpack(packed, 100)


def test_a_python_without_lzma_says_so(monkeypatch):
    data = b"the same again and again, " * 100
    packed = hostile([], {"rest": (LZMA, 0, lzma.compress(data, lzma.FORMAT_RAW, filters=codec.lzma_filters(0, 2600)))})
    assert unpack(packed, len(data)) == data
    monkeypatch.setitem(__import__("sys").modules, "lzma", None)
    with pytest.raises(BundleError, match="without lzma"):
        unpack(packed, len(data))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.integers(1, 20))
def test_kmeans_is_as_good_as_its_neighbours(values, count):
    array = np.asarray(values, np.float32)
    centroids = kmeans(array, count)
    assert 1 <= len(centroids) <= count
    assert (np.diff(centroids) > 0).all()
    indices = nearest(array, centroids)
    if len(np.unique(array)) <= count:
        np.testing.assert_array_equal(centroids[indices], array)
        return
    # each value has its nearest centroid; float32 centroids may tie within their rounding
    distance = np.abs(array[:, None].astype(np.float64) - centroids)
    np.testing.assert_allclose(distance[np.arange(len(array)), indices], distance.min(axis=1), rtol=1e-4, atol=1e-4)


def test_kmeans_settles_on_the_means_of_clear_clusters():
    rng = np.random.default_rng(4)
    values = np.concatenate([center + rng.normal(0, 0.01, 500) for center in (-3.0, 0.5, 1.0, 7.0)])
    expected = [values[i * 500 : (i + 1) * 500].mean() for i in range(4)]
    # float32 of means
    np.testing.assert_allclose(kmeans(values, 4), expected, rtol=1e-6)


def test_tensors_without_values_or_dimensions_are_passed_over():
    """A Resize leaves an empty initializer for the sizes it does not give."""
    data = bytes(range(256)) * 8
    tensors = [Weights(np.zeros(shape, np.float32)) for shape in ((0,), (0, 3), (3, 0), ())]
    assert codec.unpack(pack(data, tensors), len(data)) == data

"""Random streams of items: the numbers that runs, shards and checkpoints of earlier versions were made with."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.records import item_rng


@given(st.integers(0, 2**63), st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from("ab"))
def test_a_stream_is_that_of_a_philox_with_a_key(seed: int, uid: str, purpose: str) -> None:
    digest = hashlib.blake2b(f"{seed}\0{uid}\0{purpose}".encode(), digest_size=16).digest()
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    found = item_rng(seed, uid, purpose)
    for draw in (lambda rng: rng.random(5), lambda rng: rng.integers(9, size=3), lambda rng: rng.permutation(20)):
        np.testing.assert_array_equal(draw(found), draw(expected))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).normal(size=4), expected.normal(size=4))

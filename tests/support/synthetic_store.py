"""A store of random blobs, as `sidestage stress` makes it."""

from launch.stress.synthetic_store import corrupt_blob, expected_blob, make_store

__all__ = ["corrupt_blob", "expected_blob", "make_store"]

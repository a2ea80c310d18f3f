"""A rank of `variants_worker` on a made-up Volta with a stand-in for apex: `tests.apex_stand_in`."""

from __future__ import annotations

import pytest

from stacking.model import kernels
from tests import apex_stand_in
from tests.train import variants_worker

if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    apex_stand_in.install(patch)
    patch.setattr(kernels, "generation", lambda _: "volta")
    variants_worker.main()

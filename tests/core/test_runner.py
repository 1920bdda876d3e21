"""The pool: order kept, and BLAS on the calling thread while it is open."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from nett.core.runner import Pool


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"}


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_works_on_one_thread_while_the_pool_is_open(threads: int) -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        pool = Pool(threads)
        try:
            found = list(pool.ordered(lambda n: (n, blas_threads()), range(5)))
        finally:
            pool.close()
        assert [n for n, _ in found] == list(range(5))
        assert all(seen == {1} for _, seen in found)
        assert blas_threads() == before == {2}

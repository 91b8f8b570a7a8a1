"""Everything here needs a CUDA device; without one it is skipped. `pytest -m gpu` runs it all."""

from collections.abc import Iterator

import pytest
import torch

from compute.transports.cuda_driver import CudaDriver, has_cuda


@pytest.fixture(autouse=True)
def there_is_a_device() -> None:
    if not has_cuda():
        pytest.skip("no CUDA device, or it is hidden because -m gpu was not passed")


@pytest.fixture
def driver() -> CudaDriver:
    return CudaDriver()


@pytest.fixture
def exact_products() -> Iterator[None]:
    """float32 is multiplied as float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)

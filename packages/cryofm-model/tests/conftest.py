import pytest
import torch


@pytest.fixture
def double():
    """A user who has set torch's default precision to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def single():
    """Torch's own default precision, for what is printed in it or is about it (`nox -s robust` sets another)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)

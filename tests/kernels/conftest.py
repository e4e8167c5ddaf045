import pytest

from isoflop import kernels


@pytest.fixture(params=kernels.isas())
def isa(request):
    """Run on each instruction set."""
    before = kernels.isa()
    assert before is not None
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)

import pytest

from isoflop import kernels

needs_bfloat16 = pytest.mark.skipif(
    not kernels.has_bfloat16(), reason="no products of bfloat16 on this processor"
)


@pytest.fixture(params=kernels.isas())
def isa(request):
    """Run on each instruction set."""
    before = kernels.isa()
    assert before is not None
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)

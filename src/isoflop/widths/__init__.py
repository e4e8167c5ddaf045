"""widths"""
from isoflop.widths.old import Widths, check_widened, widen
from isoflop.widths.trace import SymbolicTrace
from isoflop.widths.solve import solve

def solve_widths(model, factor, example_inputs, *, multiple_of=1):
    t = SymbolicTrace(model)
    t.run(example_inputs)
    shapes, attributes = solve(t, factor, multiple_of)
    return Widths(factor, shapes, attributes)

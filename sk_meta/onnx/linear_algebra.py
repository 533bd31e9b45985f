"""Linear systems in ONNX, which has no operators for them: one row after the other.

Functions in onnxscript, for torch's exporter. Sizes are known only when the file runs;
the axes before the last two are batches. All heads are solved in float64.
"""

import torch
from onnxscript import DOUBLE, INT64, script
from onnxscript import opset18 as op


@script()
def cholesky(A: DOUBLE) -> tuple[DOUBLE, INT64]:
    """Lower triangular L with L L' = A, (..., n, n) -> (..., n, n), and 0: no error."""
    n = op.Squeeze(op.Shape(A, start=-1))
    rows = op.Range(0, n, 1)
    found = A - A
    left = A
    for k in range(n):
        column = op.Gather(left, op.Unsqueeze(k, [0]), axis=-1)
        pivot = op.Gather(column, op.Unsqueeze(k, [0]), axis=-2)
        below = op.CastLike(op.Unsqueeze(rows >= k, [-1]), A)
        column = below * (column / op.Sqrt(pivot))
        found = op.Where(rows == k, column, found)
        left = left - column * op.Unsqueeze(op.Squeeze(column, [-1]), [-2])
    return found, op.Constant(value_int=0)


@script()
def solve_lower(L: DOUBLE, B: DOUBLE) -> DOUBLE:
    """X with L X = B, for a lower triangular L: (..., n, n), (..., n, m)."""
    n = op.Squeeze(op.Shape(L, start=-1))
    rows = op.Unsqueeze(op.Range(0, n, 1), [-1])
    found = B
    for k in range(n):
        here = op.Unsqueeze(k, [0])
        column = op.Gather(L, here, axis=-1)
        x = op.Gather(found, here, axis=-2) / op.Gather(column, here, axis=-2)
        below = op.CastLike(rows > k, L)
        found = op.Where(rows == k, x, found - below * column * x)
    return found


@script()
def solve_upper(U: DOUBLE, B: DOUBLE) -> DOUBLE:
    """X with U X = B, for an upper triangular U: (..., n, n), (..., n, m)."""
    n = op.Squeeze(op.Shape(U, start=-1))
    rows = op.Unsqueeze(op.Range(0, n, 1), [-1])
    found = B
    for i in range(n):
        k = n - 1 - i
        here = op.Unsqueeze(k, [0])
        column = op.Gather(U, here, axis=-1)
        x = op.Gather(found, here, axis=-2) / op.Gather(column, here, axis=-2)
        above = op.CastLike(rows < k, U)
        found = op.Where(rows == k, x, found - above * column * x)
    return found


@script()
def solve_transposed(L: DOUBLE, B: DOUBLE) -> DOUBLE:
    """X with L' X = B, for a lower triangular L: (..., n, n), (..., n, m)."""
    n = op.Squeeze(op.Shape(L, start=-1))
    rows = op.Unsqueeze(op.Range(0, n, 1), [-1])
    found = B
    for i in range(n):
        k = n - 1 - i
        here = op.Unsqueeze(k, [0])
        column = op.Unsqueeze(op.Squeeze(op.Gather(L, here, axis=-2), [-2]), [-1])
        x = op.Gather(found, here, axis=-2) / op.Gather(column, here, axis=-2)
        above = op.CastLike(rows < k, L)
        found = op.Where(rows == k, x, found - above * column * x)
    return found


def linalg_solve_triangular(
    A: DOUBLE, B: DOUBLE, upper: bool, left: bool = True, unitriangular: bool = False
) -> DOUBLE:
    """torch.linalg.solve_triangular."""
    if not left or unitriangular:
        raise NotImplementedError("a triangular system from the right, or with ones")
    return solve_upper(A, B) if upper else solve_lower(A, B)


def cholesky_solve(B: DOUBLE, L: DOUBLE, upper: bool = False) -> DOUBLE:
    """torch.cholesky_solve."""
    if upper:
        raise NotImplementedError("an upper triangular Cholesky factor")
    return solve_transposed(L, solve_lower(L, B))


TRANSLATIONS = {
    torch.ops.aten.linalg_cholesky_ex.default: cholesky,
    torch.ops.aten.linalg_solve_triangular.default: linalg_solve_triangular,
    torch.ops.aten.cholesky_solve.default: cholesky_solve,
}

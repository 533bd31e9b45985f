"""Gradients of layers, in terms of operators that ONNX has."""

import torch
from torch import Tensor

aten = torch.ops.aten


def _each_axis(values, n_axes):
    values = list(values)
    return values * n_axes if len(values) == 1 else values


def convolution_backward(
    gradient: Tensor,
    X: Tensor,
    weight: Tensor,
    bias_sizes,
    stride,
    padding,
    dilation,
    transposed: bool,
    output_padding,
    groups: int,
    wanted,
):
    """Gradients of a convolution by its rows, weights and bias; None if not wanted.

    By the rows it is a transposed convolution of the output's gradient; by the weights
    a convolution of the rows with it, in which rows and channels change places, and
    stride and dilation.
    """
    if transposed:
        raise NotImplementedError("the gradient of a transposed convolution")
    n_axes = weight.dim() - 2
    stride, padding, dilation = (
        _each_axis(values, n_axes) for values in (stride, padding, dilation)
    )
    by_rows = by_weight = by_bias = None
    if wanted[0]:
        left = [
            X.shape[2 + i]
            - (gradient.shape[2 + i] - 1) * stride[i]
            + 2 * padding[i]
            - dilation[i] * (weight.shape[2 + i] - 1)
            - 1
            for i in range(n_axes)
        ]
        by_rows = aten.convolution.default(
            gradient, weight, None, stride, padding, dilation, True, left, groups
        )
    if wanted[1]:
        parts = []
        for rows, slopes in zip(
            X.chunk(groups, 1), gradient.chunk(groups, 1), strict=True
        ):
            part = aten.convolution.default(
                rows.transpose(0, 1),
                slopes.transpose(0, 1),
                None,
                dilation,
                padding,
                stride,
                False,
                [0] * n_axes,
                1,
            )
            for i in range(n_axes):  # rows that no stride reached
                part = part.narrow(2 + i, 0, weight.shape[2 + i])
            parts.append(part.transpose(0, 1))
        by_weight = torch.cat(parts)
    if wanted[2]:
        by_bias = gradient.sum([0, *range(2, 2 + n_axes)])
    return by_rows, by_weight, by_bias


def max_pool_backward(
    gradient: Tensor, X: Tensor, size, stride, padding, dilation, ceil_mode, indices
):
    """Gradient of a maximum over windows: each goes to the number that was largest."""
    zeros = torch.zeros_like(X).flatten(-2)
    found = zeros.scatter_add(-1, indices.flatten(-2), gradient.flatten(-2))
    return found.reshape(X.shape)


def empty_permuted(size, physical_layout, **options):
    """Numbers that will be written over."""
    return torch.zeros(size, dtype=options.get("dtype"))


BACKWARD = {
    aten.convolution_backward.default: convolution_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    aten.empty_permuted.default: empty_permuted,
}

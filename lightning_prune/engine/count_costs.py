"""Multiply-adds and parameters of the pruned model, counted before it is pruned."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.costs import AxisCost, find_axes
from lightning_prune.engine.extents import Axis, Product
from lightning_prune.engine.whole_copies import find_from_whole
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.counting import Factors, count
from lightning_prune.models.names import named_parameters, plain_name
from lightning_prune.models.undisturbed import keep_generators

Part = tuple[str, int | Fraction, Sequence[Axis]]
"""The name of a part, the number of multiply-adds in the dense model, and the axes."""


def make_parameter_cost(selection: Selection) -> AxisCost:
    """Return the parameters of the whole model that are not pruned, or not removed.

    With zeros in place these are the parameters that are not zero, if no dense parameter is zero.
    With channels they are those that remain when the channels are removed; an index that belongs to
    no channel stays.

    Args:
        selection: The parameters and groups of the model.

    Raises:
        ValueError: If a parameter has no shape yet.
    """
    for name in selection.names:
        if name not in selection.sizes:
            _refuse_lazy(name)
    axes = _find_axes(selection)
    return AxisCost(
        "parameters", [(name, size, axes.get(name, ())) for name, size in selection.sizes.items()]
    )


def make_macs_cost(model: nn.Module, selection: Selection, call: Call) -> AxisCost:
    """Return the multiply-adds of a forward pass, as `report` counts them in the pruned model.

    A copy of the model runs once, in evaluation mode. Each entry of a weight takes part equally
    often in a product. So pruned entries save their share, and a channel saves its rows and
    columns. Products of activations, as in attention, fall with the channels that are removed. The
    number is exact, except where slices of a parameter are used unequally often: there an entry
    saves the mean.

    Args:
        model: The model; it stays as it is.
        selection: The parameters and groups of the model.
        call: The example of the arguments of ``forward``.

    Raises:
        ValueError: If a parameter has no shape yet.
    """
    return AxisCost("macs", list_macs(model, selection, call))


def list_macs(model: nn.Module, selection: Selection, call: Call) -> list[Part]:
    """Return the multiply-adds of a forward pass in parts, with the axes that shorten each part.

    Args:
        model: The model; it stays as it is.
        selection: The parameters and groups of the model.
        call: The example of the arguments of ``forward``.

    Raises:
        ValueError: If a parameter has no shape yet.
    """
    for name, parameter in named_parameters(model).items():
        if is_lazy(parameter):
            _refuse_lazy(name)
    factors = find_from_whole(model, lambda whole: _count_factors(whole, call))
    products = _name_modules_once(model, selection.products)
    return list(_list_parts(factors, products, _find_axes(selection)))


def _count_factors(model: nn.Module, call: Call) -> Factors:
    with keep_generators(), torch.no_grad():
        copied = copy_module(model).eval().requires_grad_(False)
        return count(copied, make_call(model, call)).factors


def _list_parts(
    factors: Factors, products: Sequence[Product], axes: Mapping[str, Sequence[Axis]]
) -> Iterator[Part]:
    """Yield the multiplications by each parameter, and those of the activations of each module."""
    of_parameter: dict[str, list[Product]] = defaultdict(list)
    of_module: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        for name in product.parameters:
            of_parameter[name].append(product)
        if not product.parameters:
            of_module[product.module].append(product)
    for name, total in factors.parameters.items():
        for share, others in _divide(total, of_parameter[name]):
            yield name, share, [*axes.get(name, ()), *others]
    for name, total in factors.computed.items():
        yield name, total, []
    for name, macs in factors.activations.items():
        for share, others in _divide(Fraction(macs), of_module[name]):
            yield name, share, others


def _divide(
    total: Fraction, products: Sequence[Product]
) -> Iterator[tuple[Fraction, Sequence[Axis]]]:
    """Divide multiplications among products as the graph does, which may run another batch."""
    weight = sum(product.macs for product in products)
    if not weight:
        yield total, ()
    for product in products if weight else ():
        yield total * product.macs / weight, product.axes


def _find_axes(selection: Selection) -> dict[str, tuple[Axis, ...]]:
    shapes = {tensor.name: tuple(tensor.parameter.shape) for tensor in selection.tensors}
    return find_axes(selection.groups, shapes)


def _name_modules_once(model: nn.Module, products: Sequence[Product]) -> list[Product]:
    """Return the products by the first name of each module, as the counts have them."""
    first = {child: plain_name(name) for name, child in model.named_modules()}
    names = {
        plain_name(name): first[child]
        for name, child in model.named_modules(remove_duplicate=False)
    }
    return [
        Product(
            module=names.get(product.module, product.module),
            parameters=product.parameters,
            macs=product.macs,
            axes=product.axes,
        )
        for product in products
    ]


def _refuse_lazy(name: str) -> None:
    raise ValueError(
        f"need parameters with a shape, got '{name}', which is not initialized yet; run the model "
        "on a batch before training"
    )

"""What a plugin declares about merging whole weights, tensor by tensor."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.errors import SpecError
from modalloy.modality import Target, check_api_version, check_name, check_target

OVER = ("deltas", "models", "pair")
"""What a method merges: the models' differences from the base; the models themselves, the base
only where it is listed among them; or the base and the one other model."""


@attrs.frozen(kw_only=True)
class Parameter:
    """A setting of a method that recipes give, for a whole merge or by model, layer and tensor.

    Attributes:
        name: Key in recipes.
        default: Its value where a recipe gives none; ``None`` requires one.
        by_model: Whether every model has a value of its own.
        argument: Name by which the rule takes it, where that is not ``name``; ``""`` drops it.
        fixed: Whether a recipe may only say the default.
        low: Least value; a number must be finite as well.
        high: Greatest value.
    """

    name: str
    default: float | bool | None = None
    by_model: bool = False
    argument: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    fixed: bool = False
    low: float = -float("inf")
    high: float = float("inf")


def _by_name(parameters: Any) -> Mapping[str, Parameter]:
    return MappingProxyType({one.name: one for one in parameters})


@attrs.frozen(kw_only=True)
class TensorMethod:
    """A way to merge the weights of several models of one architecture.

    Attributes:
        name: Unique name, such as ``"ties"``: ``merge_method`` in recipes.
        api_version: :data:`~modalloy.modality.API_VERSION` that the plugin was written for.
        summary: One line for listings.
        over: What it merges, one of :data:`OVER`.
        rule: Target ``(**parameters) -> Rule`` (:mod:`modalloy.merging.rules`): a pure function
            from numbers, those by model as tuples in the order of the models, to what is done
            with a tensor. Must not import torch.
        parameters: What a recipe may set.
        random: Whether it draws random numbers, and so depends on a seed.
        most: Most models that it merges, the base not counted; 0 for any number.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    summary: str
    over: str = attrs.field()
    rule: Target = attrs.field(validator=check_target)
    parameters: Mapping[str, Parameter] = attrs.field(factory=tuple, converter=_by_name)
    random: bool = False
    most: int = 0

    @over.validator
    def _check_over(self, _: "attrs.Attribute[str]", value: str) -> None:
        if value not in OVER:
            raise SpecError(
                f"TensorMethod {self.name!r}: over must be one of {', '.join(OVER)}; got {value!r}",
                subject=f"TensorMethod {self.name!r}",
            )

"""The rule of each tensor, by a recipe's settings and its method."""

from typing import Any

from modalloy.errors import SpecError
from modalloy.merging.plan import Piece, Plan
from modalloy.merging.recipe import Recipe
from modalloy.merging.rules import Deltas, Rule, Slerp, Weighted
from modalloy.merging.settings import depth_of, find_setting, layer_of
from modalloy.merging.sources import Sources
from modalloy.merging.streaming import random_key
from modalloy.modality import resolve
from modalloy.tensor_method import TensorMethod


class Rulebook:
    """What a recipe says of each piece of each tensor.

    Args:
        recipe: The recipe.
        method: Its method.
        sources: Its models.
        plan: What is merged.
        seed: Of random numbers.
    """

    def __init__(
        self, recipe: Recipe, method: TensorMethod, sources: Sources, plan: Plan, seed: int
    ) -> None:
        self._recipe = recipe
        self._method = method
        self._function = resolve(method.rule)
        self._models = sources.models
        self._seed = seed
        numbers = [layer_of(tensor.layout.name) for tensor in plan.tensors]
        self._layers = 1 + max((n for n in numbers if n is not None), default=0)
        self._plan = plan

    def check(self) -> None:
        """Work all rules out once.

        Raises:
            SpecError: A setting is missing or its value cannot be.
        """
        for tensor in self._plan.tensors:
            for piece in tensor.pieces:
                self.rule(tensor.layout.name, piece)

    def rule(self, tensor: str, piece: Piece) -> Rule:
        """Return what is done with a piece; one that no model has is the donor's.

        Raises:
            SpecError: A parameter is not set, or the method refuses its value.
        """
        if not piece.models:
            return Weighted(weights=(1.0,))
        depth = depth_of(tensor, self._layers)
        arguments: dict[str, Any] = {}
        for parameter in self._method.parameters.values():
            values = []
            for position in piece.models if parameter.by_model else (None,):
                source = None if position is None else self._models[position]
                scopes = [source.parameters] if source else []
                value = find_setting(parameter, [*scopes, self._recipe.parameters], tensor, depth)
                if value is None:
                    whose = f" for model {source.reference!r}" if source else ""
                    raise SpecError(
                        f"merge method {self._method.name!r} needs the parameter "
                        f"{parameter.name!r}{whose}, and the recipe says none for {tensor}",
                        subject=self._method.name,
                    )
                values.append(value)
            if parameter.argument:
                arguments[parameter.argument] = tuple(values) if parameter.by_model else values[0]
        try:
            found: Rule = self._function(**arguments)
        except SpecError as error:
            raise SpecError(f"{tensor}: {error}", subject=self._method.name) from error
        problem = _problem(found, len(piece.models))
        if problem:
            raise SpecError(
                f"merge method {self._method.name!r}: for {tensor} {problem}; this is an error of "
                "the plugin that offers it",
                subject=self._method.name,
            )
        return found

    def keys(self, tensor: str, piece: Piece) -> list[int]:
        """Return the keys of a piece's random numbers, one per model."""
        labels = [self._models[position].label for position in piece.models]
        return [random_key(self._seed, tensor, label) for label in labels]


def _problem(rule: Any, models: int) -> str | None:
    """Return what is wrong with a rule; kernels trust its numbers to be as many as the models."""
    if not isinstance(rule, Rule):
        return f"its rule is {type(rule).__name__}, expected one of modalloy.merging.rules"
    if isinstance(rule, Slerp) and models != 1:
        return f"its rule is Slerp, which merges one model with the base, of {models}"
    if isinstance(rule, Weighted) and rule.divisor == 0:
        return "its rule divides by 0"
    if isinstance(rule, Deltas) and (
        (rule.spread is not None and rule.keep is None)
        or (rule.outliers is not None and rule.density is None)
    ):
        return "its rule has a spread without keep, or outliers without density"
    names = ("weights", "density", "outliers", "keep", "spread")
    for name in names:
        numbers = getattr(rule, name, None)
        if numbers is not None and len(numbers) != models:
            return f"its rule has {len(numbers)} {name} for {models} models"
    return None

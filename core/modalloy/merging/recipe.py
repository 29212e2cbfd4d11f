"""Recipes of merges: mergekit's YAML, for the methods that both have, read strictly."""

from pathlib import Path
from typing import Any

import attrs
import yaml

from modalloy.errors import FormatError, SpecError, nearest
from modalloy.structured import structure
from modalloy.tensor_method import TensorMethod

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What a merge writes: the name in safetensors by that in recipes."""

_ELSEWHERE = {
    "slices": "merging layers of different places",
    "modules": "merging the modules of a model by recipes of their own",
    "tokenizer": "building a tokenizer out of several",
    "chat_template": "choosing another chat template",
}
_MOST_BYTES = 2**20


@attrs.frozen(kw_only=True)
class Model:
    """A model of a recipe.

    Attributes:
        model: A directory, the name of an installed parent, or a Hub id.
        parameters: Settings of its own, which go before those of the whole recipe.
    """

    model: str
    parameters: dict[str, Any] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class Recipe:
    """What is merged, and how.

    Attributes:
        merge_method: Name of a registered :class:`~modalloy.tensor_method.TensorMethod`.
        models: The models, the base among them or not.
        base_model: What deltas are differences from; gives configuration and tokenizer.
        parameters: Settings by name: a value; a list of values, which layers go along; or a list
            of ``{filter, value}``, the first of which counts whose filter is part of the tensor's
            name.
        dtype: Of the output, where ``out_dtype`` does not say. Arithmetic always is float32.
        out_dtype: Of the output; that of the base's tensors where neither says.
        tokenizer_source: ``"base"``, which is what is done anyway.
    """

    merge_method: str
    models: list[Model]
    base_model: str | None = None
    parameters: dict[str, Any] = attrs.Factory(dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None

    @property
    def written(self) -> str | None:
        """Dtype of the output as safetensors names it; ``None`` keeps that of each tensor."""
        name = self.out_dtype or self.dtype
        return DTYPES[name] if name else None

    def is_base(self, model: Model) -> bool:
        """Whether a model of the list is the base."""
        if self.base_model is None:
            return False
        if model.model == self.base_model:
            return True
        places = [Path(name).expanduser() for name in (model.model, self.base_model)]
        return all(place.is_dir() for place in places) and places[0].samefile(places[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, without what it does not say."""
        return {k: v for k, v in attrs.asdict(self).items() if v not in (None, {}, [])}


class _Loader(yaml.SafeLoader):
    """Reads YAML whose mappings have no key twice, of which one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.YAMLError(f"the key {key!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML.

    Raises:
        FormatError: It cannot be read, or a key is unknown, missing or of the wrong type.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    if size > _MOST_BYTES:
        raise FormatError(f"{path} has more than {_MOST_BYTES} bytes; is it a recipe?", path=path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} is not valid YAML: {error}", path=path) from error
    return parse_recipe(data, path)


def parse_recipe(data: Any, origin: Path | str = "recipe") -> Recipe:
    """Return the recipe that plain data describes.

    Args:
        data: What YAML holds.
        origin: Where it comes from, for messages.

    Raises:
        FormatError: A key is unknown, missing or of the wrong type, or has a value that is not
            known.
    """
    for key, what in _ELSEWHERE.items():
        if isinstance(data, dict) and data.get(key) is not None:
            raise FormatError(
                f"{origin}: {key!r} ({what}) is not done here; list whole models under 'models'",
                path=origin,
            )
    recipe = structure(_without_empty(data), Recipe, origin)
    if not recipe.models:
        raise FormatError(f"{origin}: 'models' must list a model at least", path=origin)
    for key, value in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if value is not None and value not in DTYPES:
            raise FormatError(
                f"{origin}: {key} must be one of {', '.join(DTYPES)}; found {value!r}."
                f"{nearest(value, DTYPES)}",
                path=origin,
            )
    if recipe.tokenizer_source not in (None, "base"):
        raise FormatError(
            f"{origin}: tokenizer_source {recipe.tokenizer_source!r}: only 'base' is done; "
            "vocabularies are not mixed",
            path=origin,
        )
    return recipe


def _without_empty(data: Any) -> Any:
    """Return a recipe without ``parameters:`` under which nothing stands."""
    if not isinstance(data, dict):
        return data
    kept = {key: value for key, value in data.items() if key != "parameters" or value is not None}
    if isinstance(kept.get("models"), list):
        kept["models"] = [_without_empty(model) for model in kept["models"]]
    return kept


def check_base_is_listed(recipe: Recipe, method: TensorMethod) -> None:
    """Check that it is clear whether the base is merged, for methods that merge models.

    Raises:
        SpecError: It is not listed, and settings for all models are given: mergekit would merge it.
    """
    shared = [p.name for p in method.parameters.values() if p.by_model and p.default is None]
    given = [name for name in shared if name in recipe.parameters]
    if recipe.base_model is None or not given or any(map(recipe.is_base, recipe.models)):
        return
    raise SpecError(
        f"merge method {method.name!r}: {given[0]!r} is set for all models, and the base is not "
        "among 'models'; list it there if it is to be merged, or set "
        f"{given[0]!r} for each model if it only gives configuration and what adapters add to",
        subject=method.name,
    )


def check_method(recipe: Recipe, over: str, most: int, inputs: int) -> None:
    """Check that a recipe has the models that its method needs.

    Args:
        recipe: The recipe.
        over: What the method merges (:data:`modalloy.tensor_method.OVER`).
        most: Most models that it merges; 0 for any number.
        inputs: Models of the recipe that it would merge.

    Raises:
        SpecError: It has too few or too many, or no base.
    """
    name = recipe.merge_method
    if over != "models" and recipe.base_model is None:
        raise SpecError(
            f"merge method {name!r} needs a 'base_model': it merges what models differ from it by",
            subject=name,
        )
    if not inputs:
        raise SpecError(
            f"merge method {name!r}: the recipe lists the base alone; list what to merge into it",
            subject=name,
        )
    if (most and inputs > most) or (over == "pair" and inputs != 1):
        wanted = "the base and one other model" if over == "pair" else f"{most} model at most"
        raise SpecError(
            f"merge method {name!r} merges {wanted}, the recipe lists {inputs}", subject=name
        )

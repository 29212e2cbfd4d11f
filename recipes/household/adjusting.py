"""Adjusts the joint model as compositions are adjusted, so that the two can be compared.

Run ``python -m recipes.household.adjusting --data DIR --joint RESULTS/joint --out
RESULTS/coefficients/joint.json --work WORK`` after joint.py. A delta that was tuned until it fits
four ways of asking serves a fifth one better at less than its full size, whoever tuned it. So the
joint model's one delta gets a coefficient for each layer, learned and judged on the validation
questions that those of compositions are learned and judged on, by the same steps. They are for
prompts of several modalities; about one, the joint model is asked as it is.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from modalloy.cli.output import hush_transformers
from modalloy.cli.progress import progress_bar
from modalloy.composition.coefficients import SEVERAL, Coefficients
from modalloy.composition.compose import load
from modalloy.composition.features import FeatureStore
from modalloy.errors import ModalloyError
from modalloy.evaluation.answers import model_fingerprint
from modalloy.evaluation.candidates import log_shares
from modalloy.evaluation.composing import read_validation
from modalloy.evaluation.learning import learn_coefficients
from modalloy.evaluation.run import FEATURES_FOLDER, missing_kinds
from modalloy.evaluation.scoring import score_options
from modalloy.evaluation.search import TRIALS, check_labels, divide, group_by_set
from modalloy.modality import MERGED

SEED = 0
"""Of the questions' order, as `modalloy search` has it."""


def adjust(data: Path, joint: Path, work: Path) -> dict[str, Any]:
    """Return coefficients by layer for the joint model's delta, and whose they are.

    Args:
        data: Folder that build.py wrote.
        joint: Model directory.
        work: Keeps features and the state of learning; a broken run goes on.

    Raises:
        ModalloyError: Something cannot be read, or the questions do not serve.
    """
    model, processor = load(joint)
    questions = read_validation(data)
    skipped = missing_kinds(processor, questions)
    by_set = group_by_set(processor, [q for q in questions if q.kind not in skipped], SEED)
    several = {present: some for present, some in by_set.items() if len(present) > 1}
    check_labels(several, several)
    judged, taught = divide(several)
    store = FeatureStore(work / FEATURES_FOLDER)
    mark = model_fingerprint(model, processor)
    try:
        with progress_bar() as progress:
            row = learn_coefficients(
                model,
                processor,
                taught,
                (SEVERAL,),
                steps=TRIALS["gradient"],
                store=store,
                identity=mark,
                work=work,
                progress=progress,
            )
        asked = [question for some in judged.values() for question in some]
        whole = model.coefficients
        scores = {}
        for found in (whole, Coefficients((MERGED,), row)):
            model.coefficients = found
            answers = score_options(model, processor, asked, features=store)
            right = [log_shares(a)[q.answer or 0] for q, a in zip(asked, answers, strict=True)]
            scores[found.default] = sum(right) / len(right)
            print(f"mean log-probability {scores[found.default]:.4f} on {len(right)} questions")
    finally:
        store.flush()
    best = max(scores, key=lambda values: scores[values])
    return {"model": mark, "coefficients": Coefficients((MERGED,), best).to_dict()}


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
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(adjust(args.data, args.joint, args.work), indent=2) + "\n"
        partial = args.out.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(args.out)
    except (ModalloyError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""What in fed_cmi helps: terms, the ensemble's rule, whose models are inverted, label counts, labels and lessons.

python -m simulations.ablation                                   # every variant, alpha .1, seed 0
python -m simulations.ablation --methods fed_cmi joint mean_logits --seeds 0 1 2
python -m simulations.ablation --dry-run                         # the commands, and how long they may take

Fashion-MNIST in one round, 5 clients, Dirichlet by class, the setting and the budget of `simulations.one_shot`; every
variant is fed_cmi with one thing changed, from the same clients.
"""

import sys
from collections.abc import Sequence

from simulations.federated import OURS, Method
from simulations.one_shot import SETTING
from simulations.study import Study, main
from simulations.sweep import Launch

__all__ = ["STUDY", "VARIANTS", "run"]

INVERSION = "synthesizer.inversion"

ADVERSARIAL = "{_target_:fl_cmi.synthesis.terms.adversarial.Adversarial,weight:0.5,mask:agree}"
"""As in CMI."""

CONTRAST = (
    "{_target_:fl_cmi.synthesis.contrast.Contrast,weight:0.8,temperature:0.1,bank_size:8192,num_negatives:1024,"
    "head_width:256,features:{_target_:fl_cmi.synthesis.features.BatchNormInputs,last:null},learning_rate:1.0e-3,"
    "local_view:{_target_:fl_cmi.augment.ResizedCropFlip,scale:[0.25,1.0],flip:0.0}}"
)
"""As in CMI, with a bank for a few minutes."""

RULES = (
    "by_num_examples",
    "mean_logits",
    "mean_probs",
    "majority",
    "by_energy",
    "prior_corrected_logits",
)
"""Instead of `by_class_counts`."""

CHANGES: dict[str, list[str]] = {
    "fed_cmi": [],
    # terms
    "no_bn": [f"{INVERSION}.terms.bn.weight=0.0"],
    "no_one_hot": [f"{INVERSION}.terms.oh.weight=0.0"],
    "adversarial": [f"+{INVERSION}.terms.adv={ADVERSARIAL}"],
    "contrast": [f"+{INVERSION}.contrast={CONTRAST}"],
    # combination rule
    **{rule: [f"combine={rule}"] for rule in RULES},
    # whose models, and for which labels
    "joint": ["synthesizer._target_=fl_cmi.synthesis.synthesizers.Joint"],
    "no_label_counts": ["share_label_counts=false"],
    # labels and lessons
    "unsharpened": ["distiller.targets.sharpen=1.0"],
    "ensembles_labels": ["distiller.targets.mix=0.0"],
    "no_mixup": ["distiller.mixup=0.0"],
    "half_mixed": ["distiller.mixup=0.5"],
    "no_augment": ["distiller.augment=null"],
    "from_scratch": ["student_start=scratch"],
}

VARIANTS = {name: Method((*OURS, *change)) for name, change in CHANGES.items()}

STUDY = Study("simulations.ablation", (__doc__ or "").split("\n")[0], SETTING, VARIANTS)


def run(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """The command line."""
    return main(STUDY, arguments, launch)


if __name__ == "__main__":
    sys.exit(run())

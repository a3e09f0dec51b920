"""The methods that `simulations.synthesizers` compares, each a list of Hydra overrides of `python -m fl_cmi.distill`.

Losses, sources and schedules are those of `conf/synthesizer` and `conf/method`. What is cut is size: the papers'
generators, batches and hundreds of steps a batch are for a GPU, and within minutes on two cores they would leave one
batch or none. Time ends every schedule, so the number of epochs is out of reach.
"""

__all__ = ["METHODS"]

ENDLESS = ["schedule.epochs=1000000", "schedule.evaluate_every=1000000"]

SMALL_BATCH = ["synthesizer.batch_size=128", "distiller.batch_size=128"]
SMALL_GENERATOR = ["synthesizer.inversion.source.generator.width=16"]


def pool(steps: int, batches: int = 1) -> list[str]:
    """Batches are collected; after every `batches` of them the student takes `steps` steps on all images so far."""
    lessons = [f"schedule.batches={batches}", f"schedule.steps={steps}"]
    return ["schedule=grow_pool", *lessons, *SMALL_BATCH, *ENDLESS]


def pixels(name: str) -> list[str]:
    """Images are optimized pixel by pixel, every batch from noise."""
    return [f"synthesizer={name}", "synthesizer.inversion.steps=100", *pool(steps=80)]


def inversion(name: str) -> list[str]:
    """A new generator and its latents are optimized for every batch."""
    return [f"synthesizer={name}", "synthesizer.inversion.steps=50", *SMALL_GENERATOR, *pool(steps=60)]


def generator(name: str) -> list[str]:
    """One generator is trained in turn with the student; no image is kept."""
    return [f"method={name}", *SMALL_GENERATOR, *SMALL_BATCH, *ENDLESS]


METHODS: dict[str, list[str]] = {
    "noise": ["synthesizer=noise", *pool(steps=40, batches=4)],
    "deep_inversion": pixels("deep_inversion"),
    "adaptive_deep_inversion": pixels("adaptive_deep_inversion"),
    "kw_bns": pixels("kw_bns"),
    "kw_bns_inception": pixels("kw_bns_inception"),
    "kw_bns_inception_adam": [  # as in a later version of the authors' code: with SGD images hardly leave their start
        *pixels("kw_bns_inception"),
        "synthesizer.inversion.source.optimizer._target_=torch.optim.Adam",
        "~synthesizer.inversion.source.optimizer.momentum",
        "synthesizer.inversion.source.schedule=null",
        "synthesizer.inversion.source.grid_every=20",
    ],
    "dafl": generator("dafl"),
    "zskt": generator("zskt"),
    "dfad": generator("dfad"),
    "dfq": generator("dfq"),
    "rdskd": [
        *generator("rdskd"),
        "synthesizer.inversion.source.generator.num_latents=100",  # the paper's for MNIST
        "schedule.generator_batches=400",
        "schedule.steps=20",
    ],
    "cmi": inversion("cmi"),
    "cmi_no_contrast": [*inversion("cmi"), "synthesizer.inversion.contrast=null"],
    "fast_cmi": ["method=fast_cmi", *SMALL_GENERATOR, *pool(steps=20)],
    "per_client": ["synthesizer=per_client", *pool(steps=20)],
}
"""In the order of the field's history; the table is ordered by what was found."""

"""What every data set looks like once it is loaded."""

from dataclasses import dataclass

from fl_cmi.types import Images, Shape

__all__ = ["Dataset"]


@dataclass(frozen=True)
class Dataset:
    """A labelled data set in memory, with what a model needs to know to be sized by it.

    Args:
        name: Short name, as in `data=<name>`.
        train: Training images, uint8.
        test: Test images, uint8, of the same shape and classes.
        mean: Mean of the pixels in [0, 1], one per channel.
        std: Standard deviation of the pixels in [0, 1], one per channel.
        class_names: What label 0, 1, ... stands for.
    """

    name: str
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.train.shape == self.test.shape, "train and test images differ in shape"
        assert self.train.num_classes == self.test.num_classes == len(self.class_names), "one name per class"
        assert len(self.mean) == len(self.std) == self.shape[0], "one mean and one std per channel"

    @property
    def shape(self) -> Shape:
        """Channels, height and width of one image."""
        return self.train.shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

"""An ordinary client of Flower's, as its PyTorch quickstart has it: the yardstick for `fl_cmi`'s own.

A data set that hands out one picture at a time through torchvision's transforms, as torchvision's own Fashion-MNIST
does, a DataLoader, an SGD loop, and the model's tensors packed and unpacked by Flower. The pixels stay in memory from
message to message; the quickstart itself loads its part of the data anew.
"""

from collections.abc import Callable, Sequence

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, ToTensor

from fl_cmi.types import Images

__all__ = ["QuickstartClient"]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures and labels, one by one.

    Args:
        images: Where they come from.
        transform: Applied to each picture when it is asked for.
    """

    def __init__(self, images: Images, transform: Callable[[object], Tensor]) -> None:
        self.pixels, self.labels = images.x.permute(0, 2, 3, 1).squeeze(3).numpy(), images.y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class QuickstartClient:
    """Trains on a message and answers it.

    Args:
        network: Makes the model, which gets normalized pictures.
        images: The client's.
        mean: Of the pixels, a channel.
        std: Of the pixels, a channel.
        epochs: Passes over the pictures.
        batch_size: Pictures a step.
        rate: Learning rate.
        momentum: Of SGD.
        weight_decay: Of SGD.
        shift: Pixels by which each picture is shifted at most; 0: no such transform.
    """

    def __init__(
        self,
        network: Callable[[], nn.Module],
        images: Images,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        epochs: int,
        batch_size: int,
        rate: float,
        momentum: float,
        weight_decay: float,
        shift: int = 0,
    ) -> None:
        self.network, self.epochs, self.batch_size = network, epochs, batch_size
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        augment = [RandomCrop(images.shape[1:], padding=shift)] if shift else []
        self.pictures = Pictures(images, Compose([*augment, ToTensor(), Normalize(mean, std)]))

    def train(self, message: Message, context: Context) -> Message:
        """A round of this client."""
        model = self.network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        loader = DataLoader(self.pictures, batch_size=self.batch_size, shuffle=True)
        loss = self.fit(model, loader)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(self.pictures)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    def fit(self, model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
        """The quickstart's loop; the mean loss."""
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        model.train()
        running = 0.0
        for _ in range(self.epochs):
            for pictures, labels in loader:
                optimizer.zero_grad()
                loss = criterion(model(pictures), labels)
                loss.backward()
                optimizer.step()
                running += loss.item()
        return running / (self.epochs * len(loader))

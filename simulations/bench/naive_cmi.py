"""The published inversion loop of CMI, stated again from its description: the yardstick for `fl_cmi`'s own.

Same maths and the same views as `fl_cmi.synthesis`, with what the published loop spends beside: gradients for the
weights of teacher and student, a head that runs with gradient over all keys and all rows of the bank, a bank on the
CPU that is gathered anew at each step, a generator that convolves doubled maps, hooks that reshape every map, and the
classifier and the batch-norm statistics of the local view, which nobody reads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_cmi.augment import Augment
from fl_cmi.batchnorm import batch_norm_layers
from fl_cmi.types import Shape

__all__ = ["NaiveCmi"]


class Statistics:
    """A hook on one batch-norm layer."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        self.layer = layer
        layer.register_forward_hook(self.look)

    def look(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Remember the map and how far its statistics are from what the layer remembers."""
        x = inputs[0]
        flat = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1)
        mean, var = x.mean(dim=(0, 2, 3)), flat.var(dim=1, unbiased=False)
        assert self.layer.running_mean is not None and self.layer.running_var is not None
        self.distance = (self.layer.running_var - var).norm() + (self.layer.running_mean - mean).norm()
        self.map = x


def generator(shape: Shape, latents: int, width: int) -> nn.Sequential:
    """The paper's, up to the crop of sides that are no multiple of 4."""
    channels, height, width_ = shape
    start = (2 * width, -(-height // 4), -(-width_ // 4))
    return nn.Sequential(
        nn.Linear(latents, start[0] * start[1] * start[2]),
        nn.Unflatten(1, start),
        nn.BatchNorm2d(2 * width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, channels, 3, padding=1),
        nn.Sigmoid(),
    )


class NaiveCmi:
    """Batch after batch, as `Joint(Inversion(...))` with CMI's terms and contrast.

    Args:
        teacher: Its weights keep their gradients.
        student: So do its.
        shape: Of an image; sides are multiples of 4.
        batch_size: B.
        steps: Steps on one batch.
        width: Of the generator.
        bank_size: Rows of the bank, a multiple of the batch.
        negatives: Rows drawn at each step.
        views: Global and local view.
        rate: Learning rate of generator, latents and head.
        device: Where the models are; the bank stays on the CPU.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        shape: Shape,
        *,
        batch_size: int,
        steps: int,
        width: int,
        bank_size: int,
        negatives: int,
        views: tuple[Augment, Augment],
        rate: float = 1e-3,
        device: torch.device | None = None,
    ) -> None:
        self.teacher, self.student, self.shape = teacher.eval(), student.eval(), shape
        self.batch_size, self.steps, self.width = batch_size, steps, width
        self.negatives, self.views, self.rate = negatives, views, rate
        self.hooks = [Statistics(layer) for layer in batch_norm_layers(teacher)]
        features = sum(hook.layer.num_features for hook in self.hooks)
        self.device = device or torch.device("cpu")
        self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 256))
        self.head.to(self.device)
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), rate)
        self.bank = torch.randn(bank_size, 2 * features)
        self.at = 0

    def features(self) -> Tensor:
        """Spatial means of what the hooks saw last."""
        return torch.cat([hook.map.mean(dim=(2, 3)) for hook in self.hooks], dim=1)

    def contrast(self, local: Tensor, global_: Tensor, rng: torch.Generator) -> Tensor:
        """`L_cr` with a full bank."""
        rows = self.bank[torch.randperm(len(self.bank), generator=rng)[: self.negatives]]
        old_local, old_global = rows.to(local.device).chunk(2, dim=1)
        queries = F.normalize(self.head(torch.cat([local, old_local])), dim=1)
        keys = F.normalize(self.head(torch.cat([global_, old_global])), dim=1).detach()
        of_row = F.cross_entropy(
            queries @ keys.T / 0.1, torch.arange(len(queries), device=self.device), reduction="none"
        )
        return of_row[: len(local)].mean() + of_row[len(local) :].mean()

    def __call__(self, rng: torch.Generator) -> Tensor:
        """One batch of images, the best of its steps."""
        net = generator(self.shape, 256, self.width).train().to(self.device)
        z = torch.randn(self.batch_size, 256, generator=rng).to(self.device).requires_grad_()
        y = torch.randint(10, (self.batch_size,), generator=rng).sort().values.to(self.device)
        optimizer = torch.optim.Adam([*net.parameters(), z], self.rate, (0.5, 0.999))
        best, kept, rows = float("inf"), z, z
        for _ in range(self.steps):
            x = net(z)
            global_view, local_view = (view(x, rng) for view in self.views)
            t = self.teacher(global_view)
            global_ = self.features()
            loss_bn = torch.stack([hook.distance for hook in self.hooks]).sum()
            s = self.student(global_view)
            agree = s.argmax(dim=1) == t.argmax(dim=1)
            apart = F.kl_div(s.log_softmax(dim=1), t.softmax(dim=1), reduction="none").sum(dim=1)
            self.teacher(local_view)
            local = self.features()
            loss = loss_bn + F.cross_entropy(t, y) - 0.5 * (apart * agree).mean()
            loss = loss + 0.8 * self.contrast(local, global_, rng)
            if loss.item() < best:
                best, kept = loss.item(), x.detach().clone()
                rows = torch.cat([local, global_], dim=1).detach()
            optimizer.zero_grad()
            self.head_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.head_optimizer.step()
        self.bank[self.at : self.at + self.batch_size] = rows.cpu()
        self.at = (self.at + self.batch_size) % len(self.bank)
        return kept

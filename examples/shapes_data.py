"""A small detection set, drawn from a seed: discs, squares and triangles on noise."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

SHAPES = ("disc", "square", "triangle")


def draw_shapes(count: int, size: int, seed: int) -> TensorDataset:
    """Return images ``(3, size, size)`` in [0, 1] and their objects ``(4, 6)``.

    Each quarter of an image holds at most one object. The first quarter always holds an object. An
    object is ``(present, shape, x, y, width, height)``. The box is in fractions of the image, and
    (x, y) is the center of the box.

    Args:
        count: Number of images.
        size: Height and width of an image, in pixels.
        seed: Decides all images and objects.
    """
    random = torch.Generator().manual_seed(seed)
    present = torch.rand(count, 4, generator=random) < 0.6
    present[:, 0] = True
    shapes = torch.randint(len(SHAPES), (count, 4), generator=random)
    radii = size * (0.07 + 0.13 * torch.rand(count, 4, generator=random))
    corners = size / 2 * torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    room = size / 2 - 2 * radii.unsqueeze(-1)
    centres = corners + radii.unsqueeze(-1) + room * torch.rand(count, 4, 2, generator=random)
    colours = torch.rand(count, 4, 3, generator=random)
    images = torch.rand(count, 3, size, size, generator=random) * 0.6

    pixels = torch.arange(size) + 0.5
    for number in range(4):
        x, y = (centres[:, number, axis].view(-1, 1, 1) for axis in (0, 1))
        radius, shape = (value[:, number].view(-1, 1, 1) for value in (radii, shapes))
        right, down = pixels.view(1, 1, -1) - x, pixels.view(1, -1, 1) - y
        disc = right.square() + down.square() < radius.square()
        square = (right.abs() < radius) & (down.abs() < radius)
        triangle = (down.abs() < radius) & (right.abs() < (down + radius) / 2)
        inside = torch.where(shape == 0, disc, torch.where(shape == 1, square, triangle))
        inside &= present[:, number].view(-1, 1, 1)
        colour = colours[:, number].view(-1, 3, 1, 1)
        images = torch.where(inside.unsqueeze(1), 0.3 + 0.7 * colour, images)

    boxes = torch.cat([centres, (2 * radii).unsqueeze(-1).expand(-1, -1, 2)], dim=-1) / size
    return TensorDataset(images, torch.cat([torch.stack([present, shapes], -1), boxes], dim=-1))


def to_batch(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch as the losses of Ultralytics need it: the objects of all images in a list."""
    images, objects = (torch.stack(values) for values in zip(*samples, strict=True))
    present = objects[..., 0] > 0
    numbers = torch.arange(len(images)).unsqueeze(1).expand(-1, objects.shape[1])
    return {
        "img": images,
        "batch_idx": numbers[present],
        "cls": objects[present][:, 1:2],
        "bboxes": objects[present][:, 2:],
    }


class ShapesDataModule(LightningDataModule):
    """Discs, squares and triangles on noise.

    Args:
        size: Height and width of an image, in pixels; a multiple of 32.
        train_images: Number of training images.
        validation_images: Number of validation images.
        batch_size: Number of images in a batch.
    """

    def __init__(
        self,
        size: int = 96,
        train_images: int = 256,
        validation_images: int = 64,
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train = draw_shapes(train_images, size, seed=0)
        self.validation = draw_shapes(validation_images, size, seed=1)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training batches."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, collate_fn=to_batch)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return DataLoader(self.validation, batch_size=64, collate_fn=to_batch)


def write_shapes(folder: Path, data: ShapesDataModule) -> Path:
    """Write images and labels in the layout that Ultralytics reads; return the YAML file."""
    from PIL import Image

    for part, dataset in (("train", data.train), ("val", data.validation)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for number, (image, objects) in enumerate(dataset):
            pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "images" / part / f"{number}.png")
            lines = [
                f"{shape:.0f} " + " ".join(f"{value:.6f}" for value in box)
                for present, shape, *box in objects.tolist()
                if present
            ]
            (folder / "labels" / part / f"{number}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(SHAPES))
    description = folder / "shapes.yaml"
    description.write_text(
        f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}"
    )
    return description

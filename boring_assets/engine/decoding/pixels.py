"""Decoded pixels of several images of any sizes, one image after another in one buffer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""Height and width of an image, in pixels."""


def count_bytes(size: Size) -> int:
    """Returns the bytes of an RGB image."""
    return 3 * size[0] * size[1]


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of some images.

    Attributes:
        data: uint8 [sum of height * width * 3], RGB, row by row, one image after another.
        sizes: Height and width of each image.
    """

    data: "Tensor"
    sizes: list[Size]

    @classmethod
    def of_images(cls, images: "Tensor") -> "Pixels":
        """Returns images of one size, uint8 [n, height, width, 3], without a copy if they are contiguous."""
        count, height, width = images.shape[:3]
        return cls(images.reshape(-1), [(height, width)] * count)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, part: slice) -> "Pixels":
        """Returns consecutive images, without a copy."""
        start, stop, _ = part.indices(len(self.sizes))
        if start == 0 and stop == len(self.sizes):
            return self
        first = sum(map(count_bytes, self.sizes[:start]))
        sizes = self.sizes[start:stop]
        return Pixels(self.data[first : first + sum(map(count_bytes, sizes))], sizes)

    def image(self, number: int) -> "Tensor":
        """Returns one image, uint8 [height, width, 3], without a copy."""
        return self[number : number + 1].data.view(*self.sizes[number], 3)


def stack(pieces: Sequence[Pixels], size: Size) -> "Tensor":
    """Returns images of one size as one tensor, uint8 [n, height, width, 3]."""
    import torch

    return torch.cat([piece.data for piece in pieces]).view(-1, *size, 3)


def take(pieces: Sequence[Pixels], most: int) -> tuple[list[Pixels], list[Pixels]]:
    """Splits images into the first ones, at most `most`, and the others."""
    first: list[Pixels] = []
    others: list[Pixels] = []
    for piece in pieces:
        head, tail = piece[:most], piece[most:]
        most -= len(head)
        first += [head] * bool(head.sizes)
        others += [tail] * bool(tail.sizes)
    return first, others

"""An encoder that resizes images as one on a CUDA device does, but on the CPU."""

from boring_assets.engine.decoding.decoders import Target
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.encoder import Encoder, Pending
from boring_assets.engine.model.resize import DeviceResize


class ResizingEncoder(Encoder):
    """Gets ordinary JPEGs in their own size.

    Attributes:
        resized: How many images it has resized.
    """

    resized = 0

    def target(self) -> Target:
        return Target(self.model.preprocess, keep_size=True)

    def submit(self, pieces: list[Pixels]) -> Pending:
        import torch

        data = torch.cat([piece.data for piece in pieces])
        sizes = [size for piece in pieces for size in piece.sizes]
        self.resized += sum(size != self.size for size in sizes)
        resized = torch.zeros((len(sizes), *self.size, 3), dtype=torch.uint8)
        DeviceResize(self.model.preprocess, self.device)(data, sizes, resized)
        return super().submit([Pixels.of_images(resized)])

"""Augmentation: what `data.transform` may do to a minibatch of training images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_mlp.settings import SettingError


class Warp(nn.Module):
    """Moves, turns, scales, shears and bends each image at random, by one bilinear resampling.

    The bends are those of Simard et al. 2003 ("Best Practices for Convolutional Neural Networks"), a smooth random
    field, here spanned by Gaussian bumps on a coarse grid in place of filtered noise at every pixel: the same fields up
    to their finest part, for the price of one product of matrices.

    Args:
        shift: pixels by which an image is moved at most, up or down and left or right, each uniformly drawn.
        degrees: by which it is turned at most, either way.
        scale: by which it is made larger or smaller at most, as a factor: 0.1 is 0.9 to 1.1.
        shear: by which its rows slide against each other at most: 0.1 is one pixel in ten rows.
        elastic: standard deviation in pixels of where a bend puts a pixel; 0 bends nothing.
        smoothness: pixels over which bends vary, the standard deviation of a bump.

    Raises:
        SettingError: one of them is negative, or `smoothness` is below 2 pixels.
    """

    def __init__(
        self,
        shift: float = 0.0,
        degrees: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        elastic: float = 0.0,
        smoothness: float = 4.0,
    ) -> None:
        super().__init__()
        for name, value in (("shift", shift), ("degrees", degrees), ("shear", shear), ("elastic", elastic)):
            if not 0 <= value < math.inf:
                raise SettingError(f"data.transform.{name}", value, "must be a number of at least 0")
        if not 0 <= scale < 1:
            raise SettingError("data.transform.scale", scale, "must be a number of at least 0 and below 1")
        if not 2 <= smoothness < math.inf:
            raise SettingError("data.transform.smoothness", smoothness, "must be a number of at least 2 pixels")
        self.shift, self.degrees, self.scale, self.shear, self.elastic = shift, degrees, scale, shear, elastic
        self.smoothness = smoothness
        self._basis = torch.empty(0, 0)  # of the newest size of images

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) -> as many, warped; beyond its edge, an image is what its darkest pixel is.

        Draws from PyTorch's global generator.
        """
        count, _, height, width = images.shape
        if self._basis.shape[1] != height * width or self._basis.device != images.device:
            self._basis = self._make_basis(height, width).to(images.device)
        numbers = torch.cat([self._affine(count, height, width), self._bends(count, height, width)], dim=2)
        # One product for all images: where each pixel of the result is looked up, in -1..1 from edge to edge.
        places = (numbers.flatten(0, 1).to(images.device) @ self._basis).view(count, 2, height, width)
        darkest = images.amin(dim=(1, 2, 3), keepdim=True)
        # grid_sample takes what lies outside for 0. Where nothing but background comes together, it stays exactly that.
        grid = places.permute(0, 2, 3, 1).to(images.dtype)
        return F.grid_sample(images - darkest, grid, padding_mode="zeros", align_corners=False) + darkest

    def _affine(self, count: int, height: int, width: int) -> Tensor:
        """Of each image the factors of x, y and 1 in where x, and where y, is looked up: (N, 2, 3)."""
        turn, grow_x, grow_y, slide, x, y = (2 * torch.rand(count, 6) - 1).unbind(1)
        turn, slide = turn * math.radians(self.degrees), slide * self.shear
        cos, sin = turn.cos(), turn.sin()
        grow_x, grow_y = 1 / (1 + grow_x * self.scale), 1 / (1 + grow_y * self.scale)
        x, y = x * self.shift * 2 / width, y * self.shift * 2 / height
        rows = [cos * grow_x, (cos * slide - sin) * grow_x, x, sin * grow_y, (sin * slide + cos) * grow_y, y]
        return torch.stack(rows, dim=1).view(count, 2, 3)

    def _bends(self, count: int, height: int, width: int) -> Tensor:
        """Of each image the heights of the bumps, for x and for y, in the units of the grid: (N, 2, K)."""
        bumps = len(self._basis) - 3
        pixels = torch.tensor([2 / width, 2 / height]).view(1, 2, 1)
        return torch.randn(count, 2, bumps) * self.elastic * pixels

    def _make_basis(self, height: int, width: int) -> Tensor:
        """What is summed up at each pixel: x, y, 1 and the K bumps, (3 + K, height * width)."""
        x, y = ((2 * torch.arange(size) + 1) / size - 1 for size in (width, height))  # pixel centers
        lines = [x.repeat(height), y.repeat_interleave(width), torch.ones(height * width)]
        if not self.elastic:
            return torch.stack(lines)
        across, down = (self._bumps(size) for size in (width, height))
        bumps = torch.einsum("iy,jx->ijyx", down, across).flatten(2).flatten(0, 1)
        # Scaled so that at each pixel the sum of independent standard normal heights has standard deviation 1.
        return torch.cat([torch.stack(lines), bumps / bumps.square().sum(0).sqrt()])

    def _bumps(self, size: int) -> Tensor:
        """Gaussian bumps along one side, a standard deviation and a half apart, beyond both edges too: (K, size)."""
        centers = torch.arange(-self.smoothness, size + self.smoothness, 1.5 * self.smoothness)
        return torch.exp(-((torch.arange(size) - centers[:, None]) ** 2) / (2 * self.smoothness**2))

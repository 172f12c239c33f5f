"""A linear codec of image patches, fitted to images in a moment: what small models draw through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PcaCodec(nn.Module):
    """Patches of `patch` x `patch` RGB pixels to their `channels` first principal components and back; exact on the span it was
    fitted to.

    `encode` takes (B, 3, H, W) in [-1, 1] and gives (B, channels, H / patch, W / patch) of about unit spread.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        dim = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim)[:, :channels].clone())  # (dim, channels), orthonormal columns
        self.register_buffer("scale", torch.ones(channels))

    @torch.no_grad()
    def fit(self, pixels: Tensor, power: float = 0.5) -> None:
        """Fit to images (N, 3, H, W). Component c is divided by std_c^power, then all by one common spread."""
        patches = functional.pixel_unshuffle(pixels, self.patch).permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = patches.mean(0)
        _, eigenvectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))
        basis = eigenvectors.flip(1)[:, : self.channels]
        coefficients = (patches - mean) @ basis
        scale = coefficients.std(0) ** power
        scale *= (coefficients / scale).std()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.scale.copy_(scale)

    def encode(self, pixels: Tensor) -> Tensor:
        patches = functional.pixel_unshuffle(pixels, self.patch).permute(0, 2, 3, 1)
        return (((patches - self.mean) @ self.basis) / self.scale).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        patches = (latents.permute(0, 2, 3, 1) * self.scale) @ self.basis.T + self.mean
        return functional.pixel_shuffle(patches.permute(0, 3, 1, 2), self.patch)

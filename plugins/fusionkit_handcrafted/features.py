"""The features themselves; scikit-image loads here, not when components are listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import feature as skimage_feature
from torch import Tensor, nn

from fusionkit import ColumnSpec, ImageInput, InputSpec, PluginError

feature: Any = skimage_feature  # its types are given in part only

if TYPE_CHECKING:
    from fusionkit_handcrafted import HandcraftedConfig

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
HARALICK = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM", "entropy")
"""Of each, the mean and the range over four angles, as Haralick et al. 1973 propose."""
N_POINTS = 8
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode L


class Handcrafted(nn.Module):
    """Computes colour and texture features of each picture; has no parameters.

    Shape:
        (n, 3, size, size) uint8 -> (n, output_dim) float32
    """

    def __init__(self, config: HandcraftedConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.config = config
        self.images = ImageInput(config.input, columns)
        self.input_spec: InputSpec = self.images
        self.output_dim = (
            3 * config.histogram
            + 9 * config.moments
            + 2 * len(HARALICK) * len(config.glcm)
            + (N_POINTS + 2) * len(config.lbp)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, output_dim) on the pictures' device; raises PluginError on what is no bytes."""
        if images.dtype != torch.uint8:
            raise PluginError(
                f"handcrafted: pictures are uint8, and {images.dtype} came. Load them with `input_spec`."
            )
        features = np.zeros((len(images), self.output_dim))
        for index, image in enumerate(images.cpu().numpy()):
            features[index] = self._describe(image)
        return torch.from_numpy(features).float().to(images.device)

    def _describe(self, image: Bytes) -> Floats:
        config = self.config
        grey = np.rint(np.tensordot(GREY, image, 1)).astype(np.uint8)
        groups = [
            *([colour_histogram(image, config.histogram)] if config.histogram else []),
            *([colour_moments(image)] if config.moments else []),
            *(co_occurrence(grey, distance, config.glcm_levels) for distance in config.glcm),
            *(binary_patterns(grey, radius) for radius in config.lbp),
        ]
        return np.concatenate(groups)


def colour_histogram(image: Bytes, n_bins: int) -> Floats:
    """Returns the share of pixels in each bin, (3 * n_bins,), red first."""
    bins = image.reshape(3, -1).astype(np.int64) * n_bins // 256
    return np.concatenate([np.bincount(one, minlength=n_bins) / one.size for one in bins])


def colour_moments(image: Bytes) -> Floats:
    """Returns mean, deviation and skewness (signed cube root) of each colour in [0, 1], (9,)."""
    values = image.reshape(3, -1) / 255
    mean = values.mean(1)
    centred = values - mean[:, None]
    deviation, skewness = np.sqrt((centred**2).mean(1)), np.cbrt((centred**3).mean(1))
    return np.concatenate([mean, deviation, skewness])


def co_occurrence(grey: Bytes, distance: int, n_levels: int) -> Floats:
    """Returns mean, then range, over four angles of each of Haralick's measures at one distance, (14,)."""
    levels = (grey.astype(np.int64) * n_levels // 256).astype(np.uint8)
    matrix = feature.graycomatrix(levels, [distance], ANGLES, n_levels, symmetric=True, normed=True)
    measures = np.stack([feature.graycoprops(matrix, name)[0] for name in HARALICK])
    return np.concatenate([measures.mean(1), np.ptp(measures, 1)])


def binary_patterns(grey: Bytes, radius: int) -> Floats:
    """Returns the share of pixels with each uniform pattern at one radius, (10,), but for the edge."""
    patterns: Floats = feature.local_binary_pattern(grey, N_POINTS, radius, method="uniform")
    inner = patterns[radius:-radius, radius:-radius].astype(np.int64).ravel()
    return np.bincount(inner, minlength=N_POINTS + 2).astype(np.float64) / inner.size

"""A fixed camera over the ground: from metres to pixels and back.

World coordinates are metres: x to the right, y away from the camera's side of the scene, z up, the ground at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 320, 240
"""Size of a clip's pictures in pixels."""
OVERSAMPLING = 2
"""Pictures are drawn so many times wider and higher, then averaged: drawing has no anti-aliasing of its own."""
_NEAREST = 0.3  # metres; what is nearer to the lens is not drawn right


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        x, y, z: where it hangs, in metres.
        yaw: radians that it looks to the right of the y axis.
        pitch: radians that it looks down.
        focal: focal length in pixels of the finished picture.
    """

    x: float
    y: float
    z: float
    yaw: float
    pitch: float
    focal: float

    @staticmethod
    def looking_at(place: tuple[float, float, float], target: tuple[float, float], focal: float) -> Camera:
        """A camera at ``place`` whose picture's centre is the ground point ``target``."""
        dx, dy = target[0] - place[0], target[1] - place[1]
        return Camera(*place, float(np.arctan2(dx, dy)), float(np.arctan2(place[2], np.hypot(dx, dy))), focal)

    @property
    def axes(self) -> Floats:
        """Rows are the picture's right, the picture's down and the view's direction, [3,3]."""
        (sy, cy), (sp, cp) = (np.sin(self.yaw), np.cos(self.yaw)), (np.sin(self.pitch), np.cos(self.pitch))
        return np.array([[cy, -sy, 0.0], [-sy * sp, -cy * sp, -cp], [sy * cp, cy * cp, -sp]])

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Where points [...,3] are drawn: oversampled pixels [...,2], and their depths in metres [...]."""
        seen = (points - np.array([self.x, self.y, self.z])) @ self.axes.T
        depth = seen[..., 2]
        scale = OVERSAMPLING * self.focal / np.maximum(depth, _NEAREST)
        centre = np.array([WIDTH, HEIGHT]) * (OVERSAMPLING / 2)
        return seen[..., :2] * scale[..., None] + centre, depth

    def scale(self, depth: Floats) -> Floats:
        """Oversampled pixels to a metre at a depth."""
        return OVERSAMPLING * self.focal / np.maximum(depth, _NEAREST)

    def rays(self) -> Floats:
        """The direction that each oversampled pixel looks in, [H,W,3], not normalised."""
        columns = (np.arange(WIDTH * OVERSAMPLING) + 0.5) / OVERSAMPLING - WIDTH / 2
        rows = (np.arange(HEIGHT * OVERSAMPLING) + 0.5) / OVERSAMPLING - HEIGHT / 2
        right, down, ahead = self.axes
        rays: Floats = columns[None, :, None] * right + rows[:, None, None] * down + self.focal * ahead
        return rays

    def sees(self, points: Floats, margin: float = 0.0) -> NDArray[np.bool_]:
        """Whether points [...,3] fall into the picture, narrowed by a share ``margin`` at each border."""
        pixels, depth = self.project(points)
        share = pixels / (np.array([WIDTH, HEIGHT]) * OVERSAMPLING)
        inside = np.all((share >= margin) & (share <= 1 - margin), axis=-1)
        result: NDArray[np.bool_] = inside & (depth > _NEAREST)
        return result

"""People: joint angles over time, and where that puts their joints.

All functions work on whole clips at once: a pose is an array [n,15] with one row of angles for each frame.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Angle(IntEnum):
    """Columns of a pose, in radians; 0 is a person who stands upright with hanging arms."""

    LEAN = 0  # of the back, forward
    FALL = 1  # of the whole body, forward; half a turn's half is lying
    ARM_L = 2  # of the upper arm, forward
    ARM_R = 3
    SPREAD_L = 4  # of the arm, sideways
    SPREAD_R = 5
    ELBOW_L = 6
    ELBOW_R = 7
    HIP_L = 8  # of the thigh, forward
    HIP_R = 9
    KNEE_L = 10
    KNEE_R = 11
    STRIDE_L = 12  # of the leg, sideways
    STRIDE_R = 13
    TWIST = 14  # of the shoulders, to the left


class Joint(IntEnum):
    """Rows of a skeleton."""

    PELVIS = 0
    NECK = 1
    HEAD = 2
    SHOULDER_L = 3
    ELBOW_L = 4
    HAND_L = 5
    SHOULDER_R = 6
    ELBOW_R = 7
    HAND_R = 8
    HIP_L = 9
    KNEE_L = 10
    FOOT_L = 11
    HIP_R = 12
    KNEE_R = 13
    FOOT_R = 14
    TOE_L = 15
    TOE_R = 16


# Lengths for a person of 1 metre.
_TORSO, _NECK, _SHOULDER, _UPPER, _FORE, _HIP, _THIGH, _SHIN, _FOOT = 0.3, 0.1, 0.11, 0.17, 0.16, 0.055, 0.25, 0.25, 0.1
WALK_STRIDE, RUN_STRIDE = 1.45, 2.6
"""Metres that two steps cover."""


def _pose(frames: int) -> Floats:
    return np.zeros((frames, len(Angle)))


def walking(phase: Floats) -> Floats:
    """A walk; ``phase`` [n] in radians, one turn for two steps."""
    pose = _pose(len(phase))
    swing = np.sin(phase)
    pose[:, Angle.HIP_L], pose[:, Angle.HIP_R] = 0.48 * swing, -0.48 * swing
    pose[:, Angle.KNEE_L] = 0.12 + 0.75 * np.maximum(np.cos(phase), 0) ** 1.5
    pose[:, Angle.KNEE_R] = 0.12 + 0.75 * np.maximum(-np.cos(phase), 0) ** 1.5
    pose[:, Angle.ARM_L], pose[:, Angle.ARM_R] = -0.4 * swing, 0.4 * swing
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 0.25
    pose[:, Angle.SPREAD_L : Angle.SPREAD_R + 1] = 0.1
    pose[:, Angle.LEAN] = 0.04
    return pose


def running(phase: Floats, *, wild: float = 0.0) -> Floats:
    """A run; ``wild`` from 0 to 1 raises and waves the arms."""
    pose = _pose(len(phase))
    swing = np.sin(phase)
    pose[:, Angle.HIP_L], pose[:, Angle.HIP_R] = 0.25 + 0.85 * swing, 0.25 - 0.85 * swing
    pose[:, Angle.KNEE_L] = 0.35 + 1.35 * np.maximum(np.cos(phase + 0.4), 0)
    pose[:, Angle.KNEE_R] = 0.35 + 1.35 * np.maximum(-np.cos(phase + 0.4), 0)
    wave = np.sin(1.3 * phase)
    pose[:, Angle.ARM_L] = (1 - wild) * -0.9 * swing + wild * (2.6 + 0.5 * wave)
    pose[:, Angle.ARM_R] = (1 - wild) * 0.9 * swing + wild * (2.3 - 0.7 * wave)
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 1.5 - 1.1 * wild
    pose[:, Angle.SPREAD_L : Angle.SPREAD_R + 1] = 0.15 + 0.35 * wild
    pose[:, Angle.LEAN] = 0.3
    return pose


def standing(time: Floats, rng: np.random.Generator, *, talking: bool = False) -> Floats:
    """Standing at ``time`` [n] in seconds; ``talking`` adds small gestures of the forearms."""
    pose = _pose(len(time))
    sway = np.sin(time * rng.uniform(0.5, 1.0) + rng.uniform(0, 6))
    pose[:, Angle.LEAN] = 0.02 + 0.02 * sway
    pose[:, Angle.SPREAD_L : Angle.SPREAD_R + 1] = 0.12
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 0.2
    pose[:, Angle.STRIDE_L : Angle.STRIDE_R + 1] = 0.06
    if talking:
        for arm, elbow in ((Angle.ARM_L, Angle.ELBOW_L), (Angle.ARM_R, Angle.ELBOW_R)):
            gesture = np.maximum(np.sin(time * rng.uniform(0.8, 2.0) + rng.uniform(0, 6)), 0)
            pose[:, arm] = 0.25 * gesture
            pose[:, elbow] = 0.3 + 0.9 * gesture
    return pose


def sitting(time: Floats) -> Floats:
    """Sitting on something of knee height."""
    pose = _pose(len(time))
    pose[:, Angle.HIP_L : Angle.HIP_R + 1] = 1.45
    pose[:, Angle.KNEE_L : Angle.KNEE_R + 1] = 1.45
    pose[:, Angle.ARM_L : Angle.ARM_R + 1] = 0.5
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 0.7
    pose[:, Angle.LEAN] = 0.08 + 0.03 * np.sin(time)
    return pose


def lying(time: Floats, rng: np.random.Generator, *, face_down: bool = True) -> Floats:
    """Flat on the ground with limbs spread, hardly moving."""
    pose = _pose(len(time))
    pose[:, Angle.FALL] = np.pi / 2 if face_down else -np.pi / 2
    for column in (Angle.SPREAD_L, Angle.SPREAD_R, Angle.ELBOW_L, Angle.ELBOW_R):
        pose[:, column] = rng.uniform(0.3, 1.2)
    for column in (Angle.STRIDE_L, Angle.STRIDE_R):
        pose[:, column] = rng.uniform(0.15, 0.45)
    return pose


def cowering(time: Floats) -> Floats:
    """Crouched under raised arms, as someone who is beaten."""
    pose = _pose(len(time))
    pose[:, Angle.LEAN] = 0.9 + 0.12 * np.sin(9 * time)
    pose[:, Angle.HIP_L : Angle.HIP_R + 1] = 0.9
    pose[:, Angle.KNEE_L : Angle.KNEE_R + 1] = 1.3
    pose[:, Angle.ARM_L : Angle.ARM_R + 1] = 2.3
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 1.7
    return pose


def fighting(time: Floats, rng: np.random.Generator) -> Floats:
    """Punches, kicks and staggering, one blow after the other without a pause."""
    pose = _pose(len(time))
    pose[:, Angle.ARM_L], pose[:, Angle.ARM_R] = 0.9, 0.8
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 1.9
    pose[:, Angle.STRIDE_L : Angle.STRIDE_R + 1] = 0.22
    pose[:, Angle.HIP_L], pose[:, Angle.HIP_R] = 0.35, -0.3
    pose[:, Angle.KNEE_L : Angle.KNEE_R + 1] = 0.35
    pose[:, Angle.LEAN] = 0.2 + 0.15 * np.sin(time * 5 + rng.uniform(0, 6))
    at = float(time[0]) + rng.uniform(0, 0.3)
    while len(time) and at < time[-1]:
        length = rng.uniform(0.3, 0.5)
        blow = np.clip(1 - np.abs(time - at - length / 2) / (length / 2), 0, 1) ** 0.6
        side = int(rng.integers(2))
        kind = rng.choice(3, p=(0.5, 0.2, 0.3))
        if kind == 0:  # a punch
            pose[:, Angle.ARM_L + side] += 0.75 * blow
            pose[:, Angle.ELBOW_L + side] -= 1.85 * blow
            pose[:, Angle.TWIST] += (0.6 if side else -0.6) * blow
            pose[:, Angle.LEAN] += 0.3 * blow
        elif kind == 1:  # a swing from above
            pose[:, Angle.ARM_L + side] += 1.8 * blow
            pose[:, Angle.ELBOW_L + side] -= 1.2 * blow
            pose[:, Angle.SPREAD_L + side] += 0.4 * blow
        else:  # a kick
            pose[:, Angle.HIP_L + side] += (1.1 if side == 0 else 1.75) * blow
            pose[:, Angle.KNEE_L + side] -= 0.25 * blow
            pose[:, Angle.LEAN] -= 0.55 * blow
        at += length * rng.uniform(0.7, 1.1)
    return pose


def kicking_down(time: Floats, rng: np.random.Generator) -> Floats:
    """Kicks at someone on the ground."""
    pose = _pose(len(time))
    kick = np.maximum(np.sin(time * rng.uniform(8, 10) + rng.uniform(0, 6)), -0.3)
    pose[:, Angle.HIP_R] = 0.9 * kick
    pose[:, Angle.KNEE_R] = 0.3 + 0.5 * np.maximum(-kick, 0)
    pose[:, Angle.LEAN] = 0.35 - 0.3 * kick
    pose[:, Angle.ARM_L : Angle.ARM_R + 1] = 0.6
    pose[:, Angle.SPREAD_L : Angle.SPREAD_R + 1] = 0.7
    pose[:, Angle.ELBOW_L : Angle.ELBOW_R + 1] = 0.8
    return pose


def blend(poses: list[Floats], which: NDArray[np.int64], frames: int = 9) -> Floats:
    """Go from pose to pose: ``which`` [n] names each frame's, and changes take about ``frames`` frames."""
    window = np.ones(frames) / frames
    result = np.zeros_like(poses[0])
    for index, pose in enumerate(poses):
        weight = np.pad((which == index).astype(np.float64), frames // 2, mode="edge")
        result += np.convolve(weight, window, mode="valid")[:, None] * pose
    return result


def skeleton(pose: Floats, place: Floats, heading: Floats, height: float) -> Floats:
    """Joints in metres of the world, [n,17,3].

    Args:
        pose: angles [n,15].
        place: the ground under the pelvis, x and y [n,2].
        heading: radians from the x axis to where the person faces [n].
        height: of the person in metres.
    """
    frames = len(pose)
    joints = np.zeros((frames, len(Joint), 3))

    def limb(pitch: Floats, side: Floats | float) -> Floats:
        return np.stack([np.sin(pitch) * np.cos(side), np.sin(side) + 0 * pitch, -np.cos(pitch) * np.cos(side)], -1)

    lean = pose[:, Angle.LEAN]
    back = -limb(-lean, 0.0)
    joints[:, Joint.NECK] = _TORSO * back
    joints[:, Joint.HEAD] = joints[:, Joint.NECK] + _NECK * -limb(-0.8 * lean, 0.0)
    sides = (
        (1, Angle.ARM_L, Joint.SHOULDER_L, Joint.HIP_L, Joint.TOE_L),
        (-1, Angle.ARM_R, Joint.SHOULDER_R, Joint.HIP_R, Joint.TOE_R),
    )
    for side, arm, shoulder, hip, toe in sides:
        twist = pose[:, Angle.TWIST]
        across = np.stack([-np.sin(twist), np.cos(twist), 0 * twist], -1)
        joints[:, shoulder] = joints[:, Joint.NECK] + side * _SHOULDER * across - 0.02 * back
        raised = pose[:, arm] - 0.7 * lean * (np.abs(pose[:, arm]) < 1.0)
        spread = side * pose[:, arm + 2]
        joints[:, shoulder + 1] = joints[:, shoulder] + _UPPER * limb(raised, spread)
        joints[:, shoulder + 2] = joints[:, shoulder + 1] + _FORE * limb(raised + pose[:, arm + 4], 0.5 * spread)
        joints[:, hip, 1] = side * _HIP
        thigh, stride = pose[:, arm + 6], side * pose[:, arm + 10]
        shin = thigh - pose[:, arm + 8]
        joints[:, hip + 1] = joints[:, hip] + _THIGH * limb(thigh, stride)
        joints[:, hip + 2] = joints[:, hip + 1] + _SHIN * limb(shin, stride)
        joints[:, toe] = joints[:, hip + 2] + _FOOT * limb(shin + np.pi / 2 - 0.1, 0.0)
    fall = pose[:, Angle.FALL, None]
    x, z = joints[..., 0], joints[..., 2]
    joints[..., 0], joints[..., 2] = x * np.cos(fall) + z * np.sin(fall), z * np.cos(fall) - x * np.sin(fall)
    joints *= height
    # Whatever is lowest rests on the ground.
    joints[..., 2] -= joints[..., 2].min(axis=1, keepdims=True) - 0.04 - 0.07 * np.abs(np.sin(fall))
    x, y = joints[..., 0].copy(), joints[..., 1].copy()
    cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
    joints[..., 0] = x * cosine - y * sine + place[:, :1]
    joints[..., 1] = x * sine + y * cosine + place[:, 1:]
    return joints

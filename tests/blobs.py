"""Drawn masks for the tests of exports."""

import cv2
import numpy as np

SIZE = (40, 60)


def blob(x, y, width, height, hole=False):
    mask = np.zeros(SIZE, np.uint8)
    cv2.ellipse(mask, (x, y), (width, height), 20, 0, 360, 1, -1)
    if hole:
        cv2.circle(mask, (x, y), 4, 0, -1)
    return mask.astype(bool)

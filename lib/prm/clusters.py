"""AGPL: groups the proposals around peaks before training (docs/method.md)."""

from __future__ import annotations

import numpy as np

from lib.prm.peaks import Peaks
from lib.proposals.store import ImageStore
from lib.provenance import MadeFrom
from lib.structures import Clusters, Regions


def agpl_clusters(
    regions: Regions,
    peaks: Peaks,
    mean_thresh: float = 0.7,
    iou_thresh: float = 0.5,
) -> Clusters:
    """Groups proposals around points, one cluster a point, and a background cluster.

    For the k-th point: all proposals that cover it are averaged, and the pixels above
    `mean_thresh` are a mask; proposals whose IoU with it is above `iou_thresh` join cluster k and
    leave the one they were in. Proposals that touch some point's mask and join no cluster are
    the background cluster, whose number follows that of the last point.

    A point that no proposal covers has no mask and its cluster stays empty. A proposal is
    constant on a region, so everything is computed with areas of regions, never with pixels.

    Args:
        regions: the proposals of the image. P may be 0.
        peaks: in the order in which they are to be taken: ascending response for peaks of the
            PRM (`select_peaks`), file order for annotated points. K may be 0.
    """
    height, width = regions.size
    region = regions.labels[peaks.y * height // peaks.size[0], peaks.x * width // peaks.size[1]]
    membership = regions.membership.astype(np.float64)  # (P, R); all sums below are exact
    covering = membership[:, region]  # (P, K)
    mean = membership.T @ covering / np.maximum(covering.sum(axis=0), 1)  # (R, K)
    area = regions.areas[:, None] * (mean > mean_thresh)  # (R, K), of the points' masks
    intersection = membership @ area  # (P, K)
    union = (membership @ regions.areas)[:, None] + area.sum(axis=0) - intersection
    iou = intersection / np.maximum(union, 1)

    number = np.zeros(regions.num_proposals, np.int64)
    column = np.full(regions.num_proposals, -1, np.int64)
    for k in range(len(peaks)):
        joining = iou[:, k] > iou_thresh
        number[joining] = k + 1
        column[joining] = peaks.class_idx[k] + 1
    background = (intersection > 0).any(axis=1) & (number == 0)
    number[background] = len(peaks) + 1
    column[background] = 0
    return Clusters(number=number, column=column)


class ClusterStore(ImageStore):
    """A folder of cluster files named like their images.

    The arrays of a file are `header` (int64: format version, P), `number` (P,) and `column` (P,).
    """

    kind = "clusters"
    version = 2
    remedy = "make them with tools/prm.py clusters (or tools/prm.py import)"

    def save(self, file_name: str, clusters: Clusters, made_from: MadeFrom | None = None) -> None:
        """Writes the clusters of image `file_name`, replacing older ones."""
        content = {
            "header": np.array([self.version, len(clusters.number)], np.int64),
            "number": np.asarray(clusters.number, np.int32),
            "column": np.asarray(clusters.column, np.int32),
        }
        self._write(file_name, content, made_from)

    def load(self, file_name: str, num_proposals: int) -> Clusters:
        """Reads the clusters of image `file_name`.

        Args:
            num_proposals: how many proposals the image has.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated or damaged, of another format version, or made for
                another number of proposals.
        """
        content = self._read(file_name)
        if len(content["number"]) != num_proposals:
            raise ValueError(
                f"{self.path(file_name)}: clusters of {len(content['number'])} proposals, "
                f"{file_name} has {num_proposals}; {self.remedy}"
            )
        return Clusters(
            number=content["number"].astype(np.int64), column=content["column"].astype(np.int64)
        )

"""Mined instances and detections of each head compared with true masks.

For images that training has not seen; nothing here changes a network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.analysis import instance_quality as quality
from lib.analysis.instance_quality import Truth, Values
from lib.analysis.mining import Mined, mine_image
from lib.analysis.seed_statistics import Spread, markdown_table
from lib.config import Config
from lib.data.coco import read_coco
from lib.data.loader import CimDataset, ReadImage
from lib.engine.build import trained_model
from lib.engine.checkpoint import load_checkpoint
from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.coco_files import by_image
from lib.evaluation.detections import select_detections, to_coco_results
from lib.files import read_json
from lib.modeling.heads import CIMMiner, anti_noise_sample
from lib.modeling.scoring import proposal_scores
from lib.proposals.rle import masks_of
from lib.structures import Instances, Scores

Measures = dict[str, float | None]
"""Measure -> its mean over all images; None where there was nothing to measure."""

Rows = dict[str, dict[str, Measures]]
"""Checkpoint -> what is looked at -> measure -> mean over the images."""

_THRESHOLDS = (quality.GOOD_IOU, quality.TIGHT_IOU)


Known = tuple[ReadImage, Truth]
"""An image and how its proposals overlap its true objects."""


def known_images(data: CimDataset) -> list[Known]:
    """The images of a data set that have proposals, beside the masks in its json without crowds.

    Raises:
        ValueError: an annotation has no mask, or one that does not fit its image; no image has
            proposals.
    """
    path, ground_truth = str(data.coco.path), read_json(data.coco.path)
    objects = by_image(ground_truth, read_coco(ground_truth, name=path), path)
    class_of = {category_id: c for c, category_id in enumerate(data.coco.category_ids)}
    known = []
    for index, record in enumerate(data.coco.images):
        read = data.read(index)
        if len(read.proposals):
            of_image = objects.get(record.image_id, [])
            class_idx = np.array([class_of[o["category_id"]] for o in of_image], np.int64)
            masks = masks_of(of_image, record.size)
            known.append((read, quality.compare(read.proposals.regions, masks, class_idx)))
    if not known:
        raise ValueError(f"{path}: no image with proposals to look at")
    return known


def analyse_clusters(images: Sequence[Known]) -> Measures:
    """Measures the clusters, which teach the MIL branch; all members count as instances."""
    values = []
    for read, truth in images:
        column = np.asarray(read.clusters.column)
        members = np.flatnonzero(column > 0)
        found = quality.instance_quality(truth, members, column[members] - 1)
        noise = quality.label_noise(truth, column, quality.GOOD_IOU)
        values.append({**found, **noise, "instances": np.array([len(members)], float)})
    return quality.means(values)


def analyse_checkpoint(
    path: Path,
    config: Config,
    data: CimDataset,
    images: Sequence[Known],
    ground_truth: dict[str, Any],
    device: str = "cpu",
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """Mines on all images as the checkpoint would in training, and detects; one pass each.

    Args:
        config: of its training.
        ground_truth: the COCO json of the images.

    Returns:
        Two tables, head -> measures.

        First, what `stage 1`, ... are taught (empty without stages): the measures of
        `instance_quality` and `label_noise`; `instances` per image; `weighed ...`, means weighted
        by the instances' weights; `drawn ...`, all of these after anti-noise sampling.

        Second, what each head detects alone (`MIL branch`, `stage 1`, ...) and all together as in
        a test (`all stages`): `ap50` and `ap75`; `ap50 by cls`, ... with the class probability
        alone as score; the measures of `instance_quality` for the best detections of every class
        and image, as many as there are objects.

    Raises:
        CheckpointError: it does not fit the configuration or the classes of the data set.
    """
    model = trained_model(config, load_checkpoint(path), path, data.coco.class_names).to(device)
    miner, test = config.mining, config.test
    generator = torch.Generator().manual_seed(config.run.seed)
    taught, best, results = defaultdict(list), defaultdict(list), defaultdict(list)
    for read, truth in tqdm(images, path.stem, unit="image", leave=False):
        sample = data.view(read, max(test.scales)).to(device)
        mined = mine_image(model, miner, sample)
        if mined.instances is not None:
            for s, values in enumerate(_taught(mined, truth, miner, generator)):
                taught[f"stage {s + 1}"].append(values)
        proposals, image_id = read.proposals, read.record.image_id
        for name, score in _heads(mined.scores).items():
            found = select_detections(
                score.cpu().numpy(),
                proposals.boxes,
                test.score_thresh,
                test.nms_thresh,
                test.detections_per_image,
            )
            results[name] += to_coco_results(
                found, proposals.regions, image_id, data.coco.category_ids
            )
            kept = quality.best_per_object(truth, found.proposal_idx, found.class_idx)
            best[name].append(quality.instance_quality(truth, *kept))
    heads = {name: quality.means(best[name]) for name in results if not name.endswith(_BY_CLS)}
    for name, of_head in results.items():
        metrics = evaluate_segm(ground_truth, of_head, _THRESHOLDS)["metrics"]
        suffix = _BY_CLS if name.endswith(_BY_CLS) else ""
        heads[name.removesuffix(_BY_CLS)] |= {m + suffix: v for m, v in metrics.items()}
    return {name: quality.means(values) for name, values in taught.items()}, heads


_BY_CLS = " by cls"


def _heads(scores: Scores) -> dict[str, Tensor]:
    """(P, C) score of every head, also with the class probability alone as score."""
    heads = {
        "MIL branch": (scores.cls_prob * scores.det_prob)[:, 1:],
        "MIL branch" + _BY_CLS: scores.cls_prob[:, 1:],
    }
    stages = zip(scores.refine_cls_prob, scores.refine_integrity_prob, strict=True)
    for s, (cls_prob, integrity) in enumerate(stages, start=1):
        heads[f"stage {s}"] = (cls_prob * integrity)[:, 1:]
        heads[f"stage {s}" + _BY_CLS] = cls_prob[:, 1:]
    if len(scores.refine_cls_prob):
        heads["all stages"] = proposal_scores(scores)
        heads["all stages" + _BY_CLS] = scores.refine_cls_prob.mean(dim=0)[:, 1:]
    return heads


def _taught(
    mined: Mined, truth: Truth, miner: CIMMiner, generator: torch.Generator
) -> Iterator[Values]:
    """Measures of the instances that teach every stage, on one image."""
    drawn = mined.instances
    if miner.anti_noise:
        drawn = anti_noise_sample(drawn, generator)
    column = miner.assign(drawn, mined.iou, mined.containment).column.cpu().numpy()
    for s in range(len(column)):
        thresh = miner.cls_thresh + s * miner.thresh_step
        yield {
            **_of_instances(mined.instances, s, truth),
            **{f"drawn {n}": v for n, v in _of_instances(drawn, s, truth).items()},
            **quality.label_noise(truth, column[s], thresh),
        }


def _of_instances(instances: Instances, stage: int, truth: Truth) -> Values:
    class_idx = instances.class_idx[stage].cpu().numpy()
    proposal_idx = np.flatnonzero(class_idx >= 0)
    values = quality.instance_quality(truth, proposal_idx, class_idx[proposal_idx])
    weight = instances.weight[stage].cpu().double().numpy()[proposal_idx]
    total = weight.sum()
    weighed = {
        f"weighed {name}": (weight @ values[name] / total)[None] if total > 0 else np.zeros(0)
        for name in ("good", "tight", "coverage", "purity")
    }
    return {**values, **weighed, "instances": np.array([len(proposal_idx)], float)}


def seeds_table(
    of_runs: Sequence[Rows], columns: Sequence[str], count: str | None = None, of: str = "updates"
) -> str:
    """Mean and standard deviation over the runs, in percent, as a Markdown table; "" if empty.

    Args:
        count: a measure that is not a share, shown in the first column.
        of: title of the first names.
    """
    titles = [of, "", *([count] if count else []), *columns]
    rows = []
    for step, heads in of_runs[0].items():
        for name in heads:
            runs = [run[step][name] for run in of_runs if name in run.get(step, {})]
            row = [step, name]
            for measure in titles[2:]:
                values = [value for run in runs if (value := run.get(measure)) is not None]
                if not values:
                    row.append("")
                elif measure == count:
                    row.append(f"{Spread(values).mean:.1f}")
                else:
                    row.append(Spread(values).percent())
            rows.append(row)
    return markdown_table(titles, rows) if rows else ""

"""Variants of the method that leave a part out, and the table and plot that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib.analysis.dot_plot import dot_plot
from lib.analysis.seed_statistics import Table, comparison_table
from lib.files import write_json, write_text

METRICS = ("ap25", "ap50", "ap70", "ap75")
COMPARED = ("ap50", "ap75")
"""Metrics whose differences to REFERENCE are told."""
REFERENCE = "cim"
VARIANTS: dict[str, tuple[str, ...]] = {
    "mil": ("model.num_stages", "0", "loss.pcl", "0"),
    "mil_agpl": ("model.num_stages", "0"),
    "no_agpl": ("loss.pcl", "0"),
    "mist": ("mining.labels", "mist"),
    "no_integrity": (
        *("model.integrity", "false"),
        *("mining.complete_by", "cls"),
        *("loss.refine_integrity", "0"),
    ),
    "no_anti_noise": ("mining.anti_noise", "false"),
    "no_cascade": ("mining.thresh_step", "0"),
    "cim": (),
}
"""Name -> overrides of the configuration. docs/ablation.md says what they mean."""
PLUS = "cim_plus"
"""A Mask R-CNN trained on the pseudo labels of the REFERENCE run of the same seed."""


def write_comparison(table: Table, seeds: Sequence[int], title: str, path: Path) -> str:
    """Writes the numbers of all variants beside each other to `path`.json, .md and .svg.

    Args:
        table: has METRICS for every variant and seed.
        title: of the data that were scored.

    Returns:
        The Markdown table.
    """
    text = comparison_table(table, METRICS, REFERENCE, COMPARED)
    panels = {
        f"{metric.upper()}, {title}": {
            name: [100 * of_seed[str(seed)][metric] for seed in seeds]
            for name, of_seed in table.items()
        }
        for metric in COMPARED
    }
    write_json(path.with_suffix(".json"), table, indent=1)
    write_text(path.with_suffix(".md"), text + "\n")
    plot = dot_plot(panels, [f"seed {n}" for n in seeds], "Mask AP of variants, in percent")
    write_text(path.with_suffix(".svg"), plot)
    return text

#!/usr/bin/env bash
# Draws what eval_CIM.sh or generate_msrcnn_label.sh found over the images, one PNG file each.
#
#   bash scripts/visual_result_mmcv.sh                             newest run, embedded data set
#   bash scripts/visual_result_mmcv.sh --compare --limit 20 --score-thresh 0.5
#   dataset=shapes_train bash scripts/visual_result_mmcv.sh --pseudo-labels
#   output_file=Outputs/resnet50_voc/20260101-120000 dataset=voc2012sbdval \
#       bash scripts/visual_result_mmcv.sh --image 2007_000033
#   dataset=coco2017val bash scripts/visual_result_mmcv.sh --detections any_coco_results.json
#   bash scripts/visual_result_mmcv.sh --gallery      a page to browse it all, in the run's gallery/
#
# output_file  run folder (default: the newest run); the pictures go to its visual/<dataset>
# dataset      data set of the results (default: shapes_test), or images= with json= or labels=
# iter_time    step of a checkpoint to test first (default: draws the results that are there)
# cfg_file     configuration for that test (default: the run's own)
# data_root    folder of data sets and proposals (default: data)
# Arguments go to tools/look.py pictures, or after --gallery to tools/look.py gallery; see --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py visual_result_mmcv "$@"

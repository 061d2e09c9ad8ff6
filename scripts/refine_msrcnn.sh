#!/usr/bin/env bash
# CIM+: trains a Mask R-CNN on the pseudo labels of a trained CIM network and tests it. No annotated
# mask is used for training. Run again, it goes on where it was.
#
#   bash scripts/refine_msrcnn.sh                                  newest run, embedded data set
#   output_file=Outputs/resnet50_voc/20260101-120000 dataset=voc2012trainaug \
#       test_dataset=voc2012sbdval bash scripts/refine_msrcnn.sh
#
# output_file    run folder of CIM (default: the newest run); the Mask R-CNN goes to mask_rcnn in it
# iter_time      step of CIM's checkpoint (default: the newest of the run)
# dataset        data set that CIM was trained on (default: shapes_train), or json= and images=
# test_dataset   data set to test on (default: shapes_test), or test_json= and test_images=
# cfg_file       configuration, of which the section `refine` counts (default: the run's own)
# score_thresh   leaves out pseudo labels scored below (default: 0.3)
# data_root      where data sets and proposals lie (default: data)
# gpus           processes that work together in every step, each on a GPU of its own (default: 1)
# nnodes, rdzv   several machines, as for train_CIM.sh; proposals must have been made
# Arguments override the configuration: bash scripts/refine_msrcnn.sh refine.solver.max_iter 1000
set -euo pipefail
dataset=${dataset:-shapes_train}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
use_run

export dataset output_file cfg_file data_root
export -n test_dataset test_json test_images  # are not of the other driver
bash scripts/generate_msrcnn_label.sh "$@"
step "Training Mask R-CNN on the pseudo labels" \
    "${launch[@]}" tools/train_mask_rcnn.py --cfg "$cfg_file" "${run_args[@]}" "${data_args[@]}" --set "$@"

refined=(--run "$output_file/mask_rcnn")
if [ -n "${test_json:-}" ]; then
    test_dataset=$(basename "$test_json" .json)
    data_args=(--json "$test_json" --images "${test_images:?test_json= needs test_images=}")
else
    test_dataset=${test_dataset:-shapes_test}
    data_args=(--dataset "$test_dataset")
fi
data_args+=(--data-root "$data_root")
step "Masks for $test_dataset" \
    "${launch[@]}" tools/test_mask_rcnn.py --cfg "$cfg_file" "${refined[@]}" "${data_args[@]}" --set "$@"
if [ "$test_dataset" = coco2017test ]; then
    echo "The annotations of $test_dataset are not public: send the detections to COCO's server."
    exit 0
fi
case $test_dataset in coco*) coco=yes ;; *) coco= ;; esac
step "Average precision of the masks" \
    python tools/evaluate.py --cfg "$cfg_file" "${refined[@]}" "${data_args[@]}" --per-class \
    ${coco:+--coco} --set "$@"

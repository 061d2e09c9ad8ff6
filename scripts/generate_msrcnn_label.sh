#!/usr/bin/env bash
# Masks for the training images as a COCO json, to train a second detector on (CIM+). The trained
# network looks only for the classes that each image is labelled with.
#
#   bash scripts/generate_msrcnn_label.sh                          newest run, embedded data set
#   output_file=Outputs/resnet50_voc/20260101-120000 dataset=voc2012trainaug \
#       bash scripts/generate_msrcnn_label.sh
#
# output_file   run folder (default: the newest run)
# iter_time     step of the checkpoint (default: the newest of the run)
# dataset       data set it was trained on (default: shapes_train), or images= with json= or labels=
# cfg_file      configuration (default: the run's own)
# select        masks to keep: score (all scored score_thresh or more), or adaptive (the best of every
#               image and label, and what comes near it; docs/refinement.md); default: as configured
# score_thresh  keeps all masks scored so or more (default: as configured, 0.3 as published)
# segmentation  compressed (default) or uncompressed run lengths, or polygon for annotation tools
# data_root     folder of data sets and proposals (default: data)
# gpus          number of processes that share the images, each on its own GPU (default: 1)
# nnodes, rdzv  several machines, as for train_CIM.sh; make the proposals before
# Arguments override the configuration: bash scripts/generate_msrcnn_label.sh test.flips '[none]'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py generate_msrcnn_label "$@"

#!/usr/bin/env bash
# CIM+: trains a Mask R-CNN, or the network that refine.model.network names, on the pseudo labels of a
# trained CIM network and tests it. No annotated mask is used for training. Run again, it resumes where
# it stopped.
#
#   bash scripts/refine_msrcnn.sh                                  newest run, embedded data set
#   output_file=Outputs/resnet50_voc/20260101-120000 dataset=voc2012trainaug \
#       test_dataset=voc2012sbdval bash scripts/refine_msrcnn.sh
#
# output_file    run folder of CIM (default: the newest run); the network goes to a folder of its
#                name in it, mask_rcnn or mask2former
# iter_time      step of CIM's checkpoint (default: the newest of the run)
# dataset        data set that CIM was trained on (default: shapes_train), or json= and images=
# test_dataset   data set to test on (default: shapes_test), or test_json= and test_images=. Own images
#                without one get new masks from the network: <its folder>/pseudo_labels/<name>.json
# cfg_file       configuration; its section `refine` is used (default: the run's own)
# select         pseudo labels to train on: score or adaptive, as for generate_msrcnn_label.sh
# score_thresh   keeps all pseudo labels scored so or more (default: as configured, 0.3 as published)
# corrected      COCO json of images whose labels somebody has corrected: there it takes the place of
#                pseudo labels (docs/refinement.md). Also called labels=, which beside images= alone
#                is that of the image-level labels
# rounds         number of trainings (default: 1). Every further one learns from what the network before
#                it finds on the training images (self-training); its network goes to mask_rcnn_2 and so on
# segmentation   form of the pseudo labels, as for generate_msrcnn_label.sh (default: compressed)
# overwrite      yes (or --overwrite): train anew what was trained with other data or settings,
#                instead of stopping there
# data_root      folder of data sets and proposals (default: data)
# gpus           number of processes that share every step, each on its own GPU (default: 1)
# nnodes, rdzv   several machines, as for train_CIM.sh; make the proposals before
# Arguments override the configuration: bash scripts/refine_msrcnn.sh refine.solver.max_iter 1000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py refine_msrcnn "$@"

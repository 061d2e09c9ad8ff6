#!/usr/bin/env bash
# Trains CIM from image-level labels. First makes what training needs: proposals, the peak response
# network and clusters. Keeps proposals and clusters that were imported (docs/DATASET.md). Run again
# with the same output_file, it resumes where it stopped.
#
#   bash scripts/train_CIM.sh                                      the embedded data set
#   cfg_file=configs/resnet50_voc.yaml dataset=voc2012trainaug bash scripts/train_CIM.sh
#   cfg_file=configs/resnet50_coco2017.yaml dataset=coco2017train bash scripts/train_CIM.sh
#   images=my_images labels=my.csv cfg_file=configs/resnet50_voc.yaml bash scripts/train_CIM.sh
#
# cfg_file     configuration (default: configs/resnet18_shapes.yaml)
# dataset      data set to train on (default: shapes_train), or images= with json= or labels=
# output_file  run folder (default: Outputs/<configuration>/<date and time>)
# iter_time    number of updates (default: what the configuration says)
# points       folder of annotated points to make clusters from, instead of peaks (CIM-p)
# overwrite    yes (or --overwrite): train anew what was trained with other data or settings,
#              instead of stopping there
# data_root    folder of data sets, proposals and clusters (default: data; see data/README.md)
# gpus         number of processes that train together, each on its own GPU (default: 1)
# nnodes, rdzv number of machines, and host:port of the one where they meet. Run the same command on
#              each, with output_file. Before that, run it once with prepare_only=yes on one machine:
#              that makes what training needs and ends.
# Arguments override the configuration: bash scripts/train_CIM.sh solver.base_lr 0.005
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py train_CIM "$@"

#!/usr/bin/env bash
# Trains CIM from image-level labels, and first makes what that needs: proposals, the peak response
# network, clusters. What is there already is taken as it is, also proposals and clusters that were
# imported (docs/DATASET.md). Run again with the same output_file, it goes on where it was.
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
# points       folder of annotated points to make the clusters of, instead of peaks (CIM-p)
# data_root    where data sets, proposals and clusters lie (default: data; see data/README.md)
# gpus         processes that train together, each on a GPU of its own (default: 1)
# nnodes, rdzv several machines, and host:port of one, where they meet. The same command is run on
#              each, with output_file. What training needs must have been made: prepare_only=yes
#              makes it, on one machine, and ends there.
# Arguments override the configuration: bash scripts/train_CIM.sh solver.base_lr 0.005
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py train_CIM "$@"

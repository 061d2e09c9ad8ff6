#!/usr/bin/env bash
# Tests a trained network: missing proposals, scores, average precision of the masks.
#
#   bash scripts/eval_CIM.sh                                       newest run, embedded data set
#   output_file=Outputs/resnet50_voc/20260101-120000 dataset=voc2012sbdval bash scripts/eval_CIM.sh
#   output_file=Outputs/resnet50_coco2017/20260101-120000 dataset=coco2017val bash scripts/eval_CIM.sh
#
# output_file  run folder (default: the newest run)
# iter_time    step of the checkpoint (default: the newest of the run)
# dataset      data set to test on (default: shapes_test), or images= with json= or labels=
# cfg_file     configuration (default: the run's own)
# data_root    folder of data sets and proposals (default: data)
# gpus         number of processes that share the images, each on its own GPU (default: 1)
# nnodes, rdzv several machines, as for train_CIM.sh; make the proposals before
# Arguments override the configuration: bash scripts/eval_CIM.sh test.flips '[none]'
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/steps.py eval_CIM "$@"

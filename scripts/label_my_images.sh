#!/usr/bin/env bash
# From a folder of images and their labels to a mask for every object (a COCO json) and a page to
# look at. Says at the start how long it will take, and at every step how much is left. Run again
# with the same variables, it resumes where it stopped; what has changed since is made again.
#
#   bash scripts/label_my_images.sh images=my_images labels=labels.csv output=Outputs/mine
#   bash scripts/label_my_images.sh images=photos labels=photos     one sub-folder per class
#
# Variables, as arguments or in the environment; paths are relative to the current folder:
# images        folder of the images
# labels        .csv, .txt, COCO .json or folder: see docs/CUSTOM.md; or json= a COCO json as it is
# output        run folder, and folder of everything made (default: Outputs/<name>)
# name          name of the data set (default: that of the folder of images)
# cfg_file      configuration (default: configs/custom.yaml on a GPU, else configs/photos.yaml)
# iter_time     number of updates of CIM (default: by the number of images)
# select        masks to keep: score or adaptive, see docs/refinement.md (default: as configured)
# score_thresh  keeps all masks scored so or more (default: as configured)
# data_root     folder of proposals, clusters and networks (default: <output>/data)
# preview       1: a few images and updates, about three minutes on a CPU, into <output>/preview, to
#               see whether the whole is worth it
# overwrite     yes (or --overwrite): train anew what was trained with other data or settings,
#               instead of stopping there
# Further arguments override the configuration: ... output=Outputs/mine run.seed 4 prm.epochs 30
set -euo pipefail
usage="label_my_images: needs images= and labels=; see the head of ${BASH_SOURCE[0]}"
while [[ ${1:-} == *=* || ${1:-} == --overwrite ]]; do
    case ${1%%=*} in
        --overwrite) overwrite=yes ;;
        images | labels | json | output | name | cfg_file | iter_time | select | score_thresh | data_root | preview | overwrite)
            declare "${1%%=*}=${1#*=}" ;;
        *) echo "label_my_images: no variable is called ${1%%=*}; see the head of ${BASH_SOURCE[0]}" >&2
            exit 2 ;;
    esac
    shift
done
if [ -z "${images:-}" ] || [ -z "${labels:-}${json:-}" ]; then echo "$usage" >&2; exit 2; fi

seen_from=$PWD
from_there() { case $1 in /*) echo "$1" ;; *) echo "$seen_from/$1" ;; esac; }
paths=()
add() { if [ -n "$2" ]; then paths+=("$1" "$(from_there "$2")"); fi; }
case ${preview:-} in 0 | no) preview= ;; esac
add --images "$images"
add --labels "${labels:-}"
add --json "${json:-}"
add --output "${output:-}"
add --data-root "${data_root:-}"
if [ -n "${cfg_file:-}" ] && [ -e "$cfg_file" ]; then cfg_file=$(from_there "$cfg_file"); fi

source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
exec python tools/label_my_images.py "${paths[@]}" ${name:+--name "$name"} \
    ${cfg_file:+--cfg "$cfg_file"} ${iter_time:+--updates "$iter_time"} \
    ${select:+--select "$select"} ${score_thresh:+--score-thresh "$score_thresh"} \
    ${preview:+--preview} ${overwrite:+--overwrite} --set "$@"

# shellcheck shell=bash
# What the four drivers share; sourced by them with `dataset` set. Goes to the project's folder, to
# which all paths are relative, and sets
#   data_args   the data set as the tools want it: `dataset`, or your own as `images` with `json` or
#               `labels` (and `name`, see data/README.md)
#   run_args    the run that `output_file` names, or else the newest (by use_run)
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

data_root=${data_root:-data}
if [ -n "${json:-}" ]; then
    data_args=(--json "$json" --images "${images:?json= needs images=, the folder of the images}")
    dataset=${name:-$(basename "$json" .json)}
elif [ -n "${labels:-}" ]; then
    data_args=(--images "${images:?labels= needs images=, the folder of the images}" --labels "$labels")
    dataset=${name:-$(basename "$images")}
else
    data_args=(--dataset "$dataset")
fi
data_args+=(${name:+--name "$name"} --data-root "$data_root")

nnodes=${nnodes:-1}
launch=(python)
if [ "$nnodes" != 1 ]; then
    launch=(python tools/launch.py --nproc-per-node "${gpus:-1}" --nnodes "$nnodes"
        --rdzv-backend c10d --rdzv-id cim
        --rdzv-endpoint "${rdzv:?nnodes= needs rdzv=host:port, where the machines meet}")
elif [ "${gpus:-1}" != 1 ]; then
    launch=(python tools/launch.py --standalone --nproc-per-node "$gpus")
fi

# step WHAT COMMAND...: says in plain words what comes, shows the command, runs it.
step() {
    printf '\n== %s\n   ' "$1"
    printf '%q ' "${@:2}"
    printf '\n'
    "${@:2}"
}

use_run() {
    output_file=${output_file:-$(python -c '
import sys
from pathlib import Path
from lib.engine.runs import newest_run
try:
    print(newest_run(Path("Outputs")))
except FileNotFoundError as error:
    sys.exit(f"error: {error}; set output_file=RUN_FOLDER")')}
    cfg_file=${cfg_file:-$output_file/config.yaml}
    run_args=(--run "$output_file")
}

# What is done already is skipped by the tools themselves. Arguments: KEY VALUE overrides.
# On several machines it must have been made before, by one of them.
make_images() {
    if [ "$nnodes" != 1 ]; then return; fi
    if [ -z "${json:-}${labels:-}" ] && [[ $dataset == shapes_* ]]; then
        step "The embedded data set: small images, drawn" \
            python tools/make_shapes.py --root "$data_root"
    fi
}
make_proposals() {
    if [ "$nnodes" != 1 ]; then return; fi
    step "Proposals: candidate masks for every image of $dataset" \
        python tools/make_proposals.py --cfg "$cfg_file" "${data_args[@]}" --set "$@"
}
test_net() {
    step "Scores for the proposals of $dataset${iter_time:+, by the checkpoint of step $iter_time}" \
        "${launch[@]}" tools/test_net.py --cfg "$cfg_file" "${run_args[@]}" ${iter_time:+--step "$iter_time"} \
        "${data_args[@]}" ${only_image_labels:+--image-labels} --set "$@"
}

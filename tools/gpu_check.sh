#!/usr/bin/env bash
# Check everything that needs a GPU, in one command; results as JSON and Markdown in one folder.
#
#     bash tools/gpu_check.sh [FOLDER] [SECONDS] [PART ...]
#
# FOLDER    for the results; default: $OUT, else output/gpu_check/results
# SECONDS   after which the ablation ends; called again, it goes on. Default: 480
# PART      of tests, train, inference, budget, ablation; default: all, in this order
#
# Exits with 1 if a part failed or a target was missed. Without a GPU all parts run at small sizes,
# which shows that they work: the tests are rehearsed on the CPU, and targets are not asked for.
# Wheels in .whl are installed into .site first (for a machine without a network).
set -euo pipefail

cd "$(dirname "$0")/.."
folder=${1:-${OUT:-output/gpu_check/results}}
seconds=${2:-480}
[ $# -le 2 ] && parts=(tests train inference budget ablation) || parts=("${@:3}")
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "error: SECONDS must be an integer >= 1, got '$seconds'" >&2; exit 2; }
for part in "${parts[@]}"; do
    case $part in tests | train | inference | budget | ablation) ;; *)
        echo "error: PART must be tests, train, inference, budget or ablation, got '$part'" >&2; exit 2 ;;
    esac
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

python=${PYTHON:-$(command -v python || command -v python3)}
if ls .whl/*.whl > /dev/null 2>&1; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target .site .whl/*.whl
    PYTHONPATH=$PWD/.site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD:$PWD/tools${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
gpu=$("$python" -c "import torch; print(int(torch.cuda.is_available()))")

# What differs without a GPU.
if [ "$gpu" = 1 ]; then
    check=(--check)
    rehearsal=()
    train=() inference=() budget=()
    scenes=(--size 321 --num-train 2000 --num-val 300)
    data=datasets_321
    runs=(--jobs 3 --seeds 0 1 2)
    options=()
else
    check=()
    rehearsal=(--gpu-on-cpu)
    train=(--depth 18 --width 32 --crop 65 --batch 2 --rounds 2)
    inference=(--images 4 --rounds 2)
    budget=(--crop 65 --batch 2)
    scenes=(--size 64 --num-train 12 --num-val 4)
    data=output/gpu_check/data
    runs=(--jobs 1 --seeds 0 1 --variants ce ce_sw ce_sb_empirical)
    options=(MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.STEM_OUT_CHANNELS 8 SMALLOBJ.ASPP_DILATIONS "[1]"
        MODEL.RESNETS.RES2_OUT_CHANNELS 8 SMALLOBJ.CROP_SIZE "[64, 64]" SOLVER.IMS_PER_BATCH 2
        SOLVER.MAX_ITER 8 SMALLOBJ.TASK_A.ITERS 4 SMALLOBJ.EWC.NUM_IMAGES 4 SOLVER.AMP.ENABLED False
        SOLVER.CHECKPOINT_PERIOD 2 DATALOADER.NUM_WORKERS 0 SOLVER.WARMUP_ITERS 0)
fi

failed=0
run() { # run PART COMMAND...: its output into PART.txt, its end into PART.status
    local part=$1 begin=$SECONDS code=0
    shift
    echo "== $part: $*"
    "$@" > >(tee "$folder/$part.txt") 2>&1 || code=$?
    printf '{"code": %d, "seconds": %d, "command": "%s"}\n' "$code" $((SECONDS - begin)) \
        "$(printf '%s ' "${@//\"/\\\"}")" > "$folder/$part.status"
    [ "$code" = 0 ] || failed=1
}

for part in "${parts[@]}"; do
    case $part in
        tests)
            run tests "$python" -m pytest -q -p no:cacheprovider -m gpu tests/gpu "${rehearsal[@]}" \
                --junitxml "$folder/tests.xml"
            ;;
        train)
            run train "$python" tools/benchmark.py train --json "$folder/train.json" \
                "${train[@]}" "${check[@]}"
            ;;
        inference)
            run inference "$python" tools/benchmark.py inference --json "$folder/inference.json" \
                "${inference[@]}" "${check[@]}"
            ;;
        budget)
            run budget "$python" tools/benchmark.py budget --json "$folder/budget.json" \
                "${budget[@]}"
            ;;
        ablation)
            [ -d "$data/smallobj_demo" ] || "$python" datasets/prepare_demo.py \
                --root "$data/smallobj_demo" "${scenes[@]}"
            output=output/gpu_check/ablation$gpu
            DETECTRON2_DATASETS=$data run ablation "$python" tools/ablation.py --seconds "$seconds" \
                --config-file configs/demo_gpu_sbce.yaml --output "$output" "${runs[@]}" "${options[@]}"
            cp "$output"/*.csv "$output"/*.md "$folder/" 2> /dev/null || true
            ;;
    esac
done

"$python" - "$folder" <<'PYTHON'
"""Put all parts that have run into summary.json and summary.md."""
import csv, datetime, json, pathlib, subprocess, sys

from benchmarks import torch_machine

from d2_smallobj.utils.files import atomic_write_text

folder = pathlib.Path(sys.argv[1])
git = ["git", "describe", "--always", "--dirty"]
commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
summary = {**torch_machine(), "date": f"{datetime.date.today()}", "commit": commit, "parts": {}}
head = f"{summary['date']}, {commit or 'no commit'}, {summary['device']}, {summary['machine']}"
lines = ["# GPU check", "", head]
for part in ("tests", "train", "inference", "budget", "ablation"):
    if not (folder / f"{part}.status").exists():
        continue
    found = json.loads((folder / f"{part}.status").read_text())
    if (folder / f"{part}.json").exists():
        found["figures"] = json.loads((folder / f"{part}.json").read_text())
    if part == "ablation" and (folder / "ablation.csv").exists():
        found["figures"] = list(csv.DictReader((folder / "ablation.csv").open()))
    summary["parts"][part] = found
    text = (folder / f"{part}.txt").read_text(errors="replace").strip()
    body = ["```", *text.splitlines()[-15:], "```"] if part in ("tests", "ablation") else [text]
    if part == "ablation" and (folder / "ablation.md").exists():
        body += ["", (folder / "ablation.md").read_text()]
    state = "passed" if found["code"] == 0 else f"ended with {found['code']}"
    lines += ["", f"## {part}: {state} after {found['seconds']} s", "", f"`{found['command']}`", ""]
    lines += body
atomic_write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
atomic_write_text(folder / "summary.md", "\n".join(lines) + "\n")
print(f"results: {folder}/summary.md, {folder}/summary.json")
PYTHON
exit "$failed"

#!/usr/bin/env bash
# All measurements on a GPU, in parts: benchmarks/gpu.sh FOLDER
#
# Each call ends within LIMIT seconds (540) and resumes where the last one stopped. It prints which
# parts are left; the exit code is then 75. FOLDER gets CSV files; delete it to start again. PYTHON
# runs our models, TORCH_PYTHON (by default the same) the original's. SMOKE=1 tests everything with
# tiny images and one model, on CPU if necessary.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: benchmarks/gpu.sh FOLDER}
mkdir -p "$folder"
python=${PYTHON:-python}
torch_python=${TORCH_PYTHON:-$python}
limit=${LIMIT:-540}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unfinished=()

models=(resnet50 resnet50_lpf4 resnet18 resnet18_lpf4 resnet101 resnet101_lpf4)
models+=(densenet121 densenet121_lpf4 vgg16_bn vgg16_bn_lpf4 mobilenet_v2 mobilenet_v2_lpf4)
remedies=(resnet50_lpf4 mobilenet_v2_lpf4 densenet121_lpf4 resnext50_32x4d_lpf4)
compared=(--variants eager_channels_last compile_channels_last --rounds 3 --turn 2)
precisions=(--precision float32 bfloat16)
small=(48) large=(256) needs=150 copies=256 steps=60
size=(--size 224)
if [[ -n ${SMOKE:-} ]]; then
    models=(resnet18_lpf4) remedies=(resnet18_lpf4) small=(2) large=(3) needs=0 copies=1 steps=3
    compared=(--variants eager_channels_last --rounds 2 --turn 0.02)
    size=(--size 64)
    precisions=(--precision float32)
fi

stage() { # NAME SECONDS COMMAND...: skipped if it is done, or too little time is left
    local name=$1 needed=$2 code=0
    shift 2
    [[ -e $folder/.$name ]] && return
    if ((SECONDS + needed > limit)); then
        unfinished+=("$name")
        return
    fi
    echo "== $name" >&2
    "$@" || code=$?
    if ((code == 0)); then touch "$folder/.$name"; else unfinished+=("$name"); fi
}

compare() { # ARGUMENTS... of models.py, whose tables are written at the end
    local seconds=$((limit - SECONDS - needs))
    "$python" benchmarks/models.py --output "$folder/models.csv" --torch_python "$torch_python" \
        "${compared[@]}" "${size[@]}" --seconds "$seconds" "$@" | sed '/^|/d'
}

blur() { # TYPE
    "$python" benchmarks/blurpool.py --filter_sizes 4 --batch "$copies" --dtype "$1" \
        --output "$folder/blurpool_$1.csv"
}

rate() { # MODEL TYPE
    "$python" benchmarks/train_rate.py --model "$1" --dtype "$2" --batch "${large[0]}" \
        --steps "$steps" "${size[@]}" --workers "$(nproc)" --output "$folder/train_rate.csv"
}

stage resnet50 "$needs" compare --models "${models[@]:0:2}" --modes training --batch "${large[@]}" "${precisions[@]}"
stage blur_float32 "$needs" blur float32
stage blur_bfloat16 "$needs" blur bfloat16
stage rate "$needs" rate "${models[0]}" bfloat16
stage training "$needs" compare --models "${models[@]}" --modes training --batch "${large[@]}" "${precisions[@]}"
stage forward "$needs" compare --models "${models[@]}" --modes forward --batch "${small[@]}" "${large[@]}" "${precisions[@]}"
stage remedies "$needs" compare --models "${remedies[@]}" --modes forward training --batch "${large[@]}" \
    "${precisions[@]}" --our_variants default definitions cpu_kernels
stage consistency "$needs" compare --models "${models[@]:0:2}" --modes consistency --batch "${small[@]}"

"$python" benchmarks/models_table.py "$folder/models.csv" > "$folder/models.md"
if ((${#unfinished[@]})); then
    echo "left: ${unfinished[*]}; the same command resumes"
    exit 75
fi
echo "everything is measured: $folder"

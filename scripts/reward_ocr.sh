#!/usr/bin/env bash
# DeepGen-RL's name for starting the OCR reward: our OCR service, with the protocol of its clients.
#   bash scripts/reward_ocr.sh [flags of python -m services.ocr]
# Environment: OCR_PORT (18082). Other variables: docs/migration_deepgen.md.
set -euo pipefail
# shellcheck source=scripts/deepgen_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/deepgen_common.sh"

leave_out OCR_WORKERS "the number of processes"
replace_by python -m services.ocr --legacy --legacy-reward flow_grpo "$@"

# Sourced by the other scripts: where the checkout is, and how its virtual environments are made.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
# Asked for alone and first: whatever comes later then finds torch there and brings no other build of it.
TORCH=torch==2.13.0

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# The environment of the checks and the tests.
test_environment() { environment "${GRAFTWOOD_VENV:-$ROOT/.venv-test}" dev,report,peers; }

# environment FOLDER EXTRAS: a virtual environment with torch and this checkout, made once; its path is in VENV.
# What it was made from is written into a stamp last of all, so that a set-up cut short is taken up again.
environment() {
  local extras=$2 stamp=$1/graftwood.stamp wanted
  VENV=$1
  check_python
  wanted=$(fingerprint "$extras")
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    say "environment: $VENV"
    return
  fi
  say "environment: setting up $VENV with $("$PYTHON" --version)"
  if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" != "${wanted%%$'\n'*}" ]; then
    say "environment: it was made by another Python, so it is made anew"
    "$PYTHON" -m venv --clear "$VENV"
  else
    "$PYTHON" -m venv "$VENV"
  fi
  say "environment: installing $TORCH"
  pip_install "$TORCH"
  say "environment: installing graftwood[$extras]"
  pip_install --editable "$ROOT[$extras]"
  if "$VENV/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    say "environment: this package index gave a CUDA build of torch; it works on a CPU as well, only larger"
  fi
  printf '%s\n' "$wanted" >"$stamp"
}

check_python() {
  command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON; install Python 3.11 or newer, or name it with PYTHON=..."
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$PYTHON is $("$PYTHON" --version 2>&1); Python 3.11 or newer is needed, name one with PYTHON=..."
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$PYTHON lacks ensurepip or venv, so it cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
}

# Everything an environment follows from, the Python first.
fingerprint() {
  "$PYTHON" - "$ROOT" "$TORCH" "$1" <<'PYTHON_CODE'
import hashlib, pathlib, sys

root, *rest = sys.argv[1:]
project = pathlib.Path(root, "pyproject.toml").read_bytes()
print(sys.base_prefix, sys.version.split()[0])
print(hashlib.sha256(b"\0".join([project, root.encode(), *map(str.encode, rest)])).hexdigest())
PYTHON_CODE
}

# Without compiling: that takes longer than the rest, and most of torch's modules are never imported.
pip_install() {
  "$VENV/bin/python" -m pip install -qq --no-compile --disable-pip-version-check --no-input "$@" ||
    fail "pip could not install $* (its message is above); check the network and pip's index settings, then run this again"
}

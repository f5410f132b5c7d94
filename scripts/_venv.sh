# Sourced by the other scripts: makes .venv with what pyproject.toml asks for, in the versions we test against.
# usage: install_into_venv EXTRA      (EXTRA: "" or e.g. "[test]")
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

install_into_venv() {
  local wanted
  wanted="$1 $(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | sha256sum)"
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || {
    echo "python3 -m venv failed; Python 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)" >&2
    exit 1
  }
  if ! grep -qxF "$wanted" "$venv/installed" 2>/dev/null; then
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "Python 3.11 or newer is needed; found $("$venv/bin/python" -V)" >&2
      exit 1
    }
    echo "installing into .venv (once; a few minutes)" >&2
    # torch first and pinned: without an NVIDIA GPU a build for the CPU does, and CUDA's packages are several GB
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $(torch_source) -c "$root/scripts/constraints.txt" torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/scripts/constraints.txt" -e "$root$1"
    echo "$wanted" >>"$venv/installed"
  fi
}

# Where torch comes from: the package index, or the index that DISTILL_TORCH_INDEX names (one with builds for the CPU).
torch_source() {
  command -v nvidia-smi >/dev/null && return
  [ -n "${DISTILL_TORCH_INDEX:-}" ] && echo "--index-url $DISTILL_TORCH_INDEX"
}

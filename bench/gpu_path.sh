# Sourced by the benches for a GPU machine without network: gpu_path.sh SETUP WORK
# Puts vLLM on the path (by sourcing SETUP TARGET), and the files that `pip install .` would install: the packages, and the
# entry points by which vLLM finds the collector and the demo's plugin.
# shellcheck disable=SC1090
source "$1" "$2/site"
mkdir -p "$2/path/rltop" "$2/path/rltop-0.dist-info"
for package in tui backend collectors integrations; do ln -sfn "$PWD/$package" "$2/path/rltop/$package"; done
printf 'Metadata-Version: 2.1\nName: rltop\nVersion: 0\n' > "$2/path/rltop-0.dist-info/METADATA"
sed -n '/^\[project.entry-points."vllm.general_plugins"\]/,/^$/p' pyproject.toml | tr -d '"' |
    sed 's/^\[project.entry-points./[/' > "$2/path/rltop-0.dist-info/entry_points.txt"
export PYTHONPATH=$2/path:$PWD${PYTHONPATH:+:$PYTHONPATH}

"""`mergekit-yoyo merge --ray`: the same bytes from a cluster, also when a node is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finish_fixtures import tensor_bytes, write_checkpoint

ray = pytest.importorskip("ray", reason="needs the extra `ray`")


def command(yaml: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mergekit_yoyo", "merge", str(yaml), str(out)),
            *("--out-shard-size", "10k", *options),
        ],
        cwd=yaml.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
def test_three_nodes_one_of_which_is_killed(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    models = [write_checkpoint(tmp_path / f"m{k}", "qwen3_moe", seed=k) for k in range(3)]
    yaml = tmp_path / "merge.yml"
    listed = "".join(f"- model: {model}\n" for model in models)
    yaml.write_text(f"merge_method: yoyo_fusion\nmodels:\n{listed}")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        lost = cluster.add_node(num_cpus=1)
        run = command(yaml, tmp_path / "merged", "--ray", cluster.address)
        assert run.stderr
        said = []
        for line in run.stderr:  # it says itself when the first part is done
            said.append(line)
            if line.startswith("part 1 of"):
                cluster.remove_node(lost, allow_graceful=False)
                break
        said += run.stderr
        assert run.wait() == 0, "".join(said)
        assert any("3 nodes of a Ray cluster" in line for line in said)
        parts = sum(line.startswith("part ") for line in said)
        assert parts > 5, said
    finally:
        cluster.shutdown()
    here = command(yaml, tmp_path / "here", "--workers", "1")
    assert here.communicate() is not None
    assert here.returncode == 0
    assert tensor_bytes(tmp_path / "merged") == tensor_bytes(tmp_path / "here")


def test_a_cluster_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", "llama")
    yaml = tmp_path / "merge.yml"
    yaml.write_text(f"merge_method: yoyo_fusion\nmodels:\n- model: {model}\n- model: {model}\n")
    run = command(yaml, tmp_path / "merged", "--ray", "127.0.0.1:9")
    said = run.communicate()[1]
    assert run.returncode == 2, said
    assert "--ray 127.0.0.1:9: no cluster answers" in said
    assert "Traceback" not in said
    assert not (tmp_path / "merged").exists()

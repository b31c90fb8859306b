"""`mergekit-yoyo merge --ray`: the same bytes from a cluster, also when a node is lost."""

import os
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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

    yaml = tmp_path / "merge.yml"
    listed = ""
    for k in range(3):  # paths that are relative: the workers of Ray are in folders of their own
        write_checkpoint(tmp_path / f"m{k}", "qwen3_moe", seed=k)
        listed += f"- model: ./m{k}\n"
    yaml.write_text(f"merge_method: yoyo_fusion\nmodels:\n{listed}")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 10**8})
    try:
        run = command(yaml, tmp_path / "merged", "--ray", cluster.address)
        said = run.communicate()[1]
        assert run.returncode == 2, said
        assert "the largest node of the cluster offers 100.0 MB" in said
        cluster.add_node(num_cpus=1)
        run = command(yaml, tmp_path / "merged", "--ray", cluster.address, "--cuda")
        said = run.communicate()[1]
        assert run.returncode == 2, said
        assert "--cuda: no node of the cluster has a GPU" in said
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
        assert any("4 nodes of a Ray cluster" in line for line in said)
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


def test_what_listens_and_is_not_ray_is_told_soon(tmp_path: Path) -> None:
    """Ray itself asks it for 100 seconds."""
    model = write_checkpoint(tmp_path / "m", "llama")
    yaml = tmp_path / "merge.yml"
    yaml.write_text(f"merge_method: yoyo_fusion\nmodels:\n- model: {model}\n- model: {model}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        run = command(yaml, tmp_path / "merged", "--ray", address)
        said = run.communicate()[1]
        server.shutdown()
    assert run.returncode == 2, said
    assert f"--ray {address}: no cluster answers (what listens there is not Ray)" in said

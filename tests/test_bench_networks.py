"""`python -m epiconv.bench --networks`: networks of the benchmark's own, and what it does without others."""

import json

import pytest
import torch

import epiconv
from epiconv.bench import networks
from epiconv.bench.__main__ import main
from epiconv.bench.peers import Unavailable

CPU = torch.device("cpu")
PEERS = ("eager", "eager_channels_last", "fused", "fused_channels_last")


# Of the decoder's those stay whose result has two readers, a shortcut, and the last one.
@pytest.mark.parametrize(
    ("name", "fused", "convolutions"), [("unet", 17, 18), ("dcgan", 5, 5), ("vae_decoder", 16, 22)]
)
def test_own_networks(name, fused, convolutions, capsys):
    network = networks.NETWORKS[name]
    model = network.make_small().eval()
    rows = epiconv.report(epiconv.fuse(model, torch.randn(network.small))).rows
    assert (sum(row.fused for row in rows), len(rows)) == (fused, convolutions)


@pytest.mark.parametrize("name", ["unet", "dcgan", "vae_decoder"])
def test_times(name):
    rows = networks.network_times(name, "fp32", CPU, PEERS, 0.0)
    assert [(row.network, row.dtype, row.peer) for row in rows] == [(name, "fp32", peer) for peer in PEERS]
    assert all(row.ms > 0 and 0 < row.error < 1e-3 for row in rows)


def test_full_size_on_meta():
    for name, channels in (("unet", 2), ("dcgan", 3), ("vae_decoder", 3)):
        network = networks.NETWORKS[name]
        with torch.device("meta"):
            result = network.make().eval()(torch.empty(network.shape))
        assert result.shape[:2] == (network.shape[0], channels)


def test_without_torchvision(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(networks, "import_module", missing)
    with pytest.raises(Unavailable, match="torchvision cannot be imported: No module named"):
        networks.network_times("resnet50", "fp32", CPU, PEERS, 0.0)


def test_command_line(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--seconds", "0", "--dtypes", "fp32", "--json", str(path)]
    assert main([*arguments, "--networks", "dcgan", "--peers", "eager,fused"]) == 0
    rows = json.loads(path.read_text())["networks"]
    assert [(row["network"], row["peer"]) for row in rows] == [("dcgan", "eager"), ("dcgan", "fused")]
    assert "networks, end to end" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--networks", "lenet"])
    assert "unknown network 'lenet'" in capsys.readouterr().err

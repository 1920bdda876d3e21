"""PLeaS through files: the command, its plan, receipt and outputs; transformers' models; bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from nett.core.cards import find_card  # noqa: E402
from nett.core.errors import NettError  # noqa: E402
from nett.core.symmetry.fitting import fitted  # noqa: E402
from nett.core.tiny import write_llama  # noqa: E402
from nett.merge import engine  # noqa: E402

CODE = """
import torch
from torch import nn

def net(classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6),
                         nn.ReLU(), nn.Linear(6, classes))

def net5():
    return net(5)

def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
"""
PLEAS = find_card("merge/pleas")


def made(name):
    scope = {}
    exec(CODE, scope)
    return scope[name]()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two networks, the code, inputs with labels."""
    folder = tmp_path_factory.mktemp("pleas")
    (folder / "nets.py").write_text(CODE)
    for i, name in enumerate(("net", "net", "net5")):
        torch.manual_seed(i)
        module = made(name)
        module[1].running_mean.uniform_(-1, 1)
        (folder / f"m{i}").mkdir()
        save_file({n: t.numpy() for n, t in module.state_dict().items()}, folder / f"m{i}" / "model.safetensors")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1, 4, 4)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=rng.integers(0, 3, 60))
    return folder


def run(folder, models, out, parameters=None, net="net", **more):
    words = {"net": f"{folder}/nets.py:{net}", "data": folder / "data.npz", "speak": False} | more
    return engine.run(PLEAS, [str(folder / m) for m in models], parameters or {}, out=folder / out, **words)


def test_the_output_loads_with_its_own_widths(written):
    receipt = run(written, ["m0", "m1"], "apart", {"ratio": 1.0})
    x = torch.from_numpy(np.load(written / "data.npz")["x"])
    tensors = load_file(written / "apart" / "model.safetensors")
    with torch.no_grad():
        outputs = [fitted(made("net"), load_file(written / m / "model.safetensors")).eval()(x) for m in ("m0", "m1")]
        found = fitted(made("net"), tensors).eval()(x)
    torch.testing.assert_close(found, (outputs[0] + outputs[1]) / 2, rtol=1e-5, atol=1e-6)
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    record = json.loads((written / "apart" / "pleas.json").read_text())
    figures = receipt["figures"]
    assert record["widths"] == figures["widths"] == {"0": [4, 8], "4": [6, 12]}
    assert "Squared error of each layer" in (written / "apart" / "nett.html").read_text()
    assert figures["flops_result"] == 2 * figures["flops_one_network"] < figures["flops_result_dense"]
    assert [r["layer"] for r in figures["layers"]] == ["0", "4", "6"]
    assert all(r["error_after"] < 1e-10 for r in figures["layers"])
    assert receipt["proof"] == "kept"
    assert all(c["ok"] for c in engine.verify(written / "apart", receipt, rerun=True))


def test_the_plan_says_memory_and_writes_nothing(written):
    plan = run(written, ["m0", "m1"], "planned", dry_run=True)["plan"]
    assert plan["groups"] == 2 and plan["peak_memory_bytes"] > 0
    without = run(written, ["m0", "m1"], "planned", {"squares": False}, dry_run=True)["plan"]
    assert plan["peak_memory_bytes"] > without["peak_memory_bytes"]
    assert not (written / "planned").exists()


def test_heads_of_unlike_shapes_and_data_free(written):
    receipt = run(written, ["m0", "m2"], "heads", {"budget": 1.5}, data=None, input="1x1x4x4")
    assert any("on random input" in n for n in receipt["notes"])
    assert any("averages of both networks'" in n for n in receipt["notes"])
    trunk, head = (load_file(written / "heads" / f) for f in ("model.safetensors", "head-2.safetensors"))
    assert head["6.weight"].shape == (5, trunk["6.weight"].shape[1]) and trunk["6.weight"].shape[0] == 3
    with torch.no_grad():
        assert fitted(made("net5"), trunk | head).eval()(torch.zeros(2, 1, 4, 4)).shape == (2, 5)


@pytest.mark.parametrize(
    ("models", "parameters", "more", "said"),
    [
        (["m0", "m1", "m2"], {}, {}, "takes 2 models, but 3 were given"),
        (["m0", "m1"], {"budget": 3}, {}, "1 <= budget <= 2"),
        (["m0", "m1"], {"ratio": 0.5, "widths": "0=5"}, {}, "both given"),
        (["m0", "m1"], {"widths": "0=9"}, {}, r"4 \(all merged\) <= 0 <= 8 \(all apart\)"),
        (["m0", "m1"], {"heads": "9"}, {}, "there is no layer '9'"),
        (["m0", "m1"], {}, {"net": None, "data": None}, "which of its units may change places"),
        (["m0", "m1"], {}, {"net": None}, "--data is given to the network that --net names"),
        (["m0", "m1"], {}, {"data": None, "input": "1xtwo"}, "is no shape"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(written, models, parameters, more, said):
    words = dict(more)
    with pytest.raises(NettError, match=said):
        if words.get("net", "") is None:
            engine.run(PLEAS, [str(written / m) for m in models], parameters, out=written / "bad", speak=False,
                       data=words.get("data", written / "data.npz"))  # fmt: skip
        else:
            run(written, models, "bad", parameters, **words)
    assert not (written / "bad").exists()


def test_a_llama_gets_wider_mlps_and_loads(tmp_path):
    transformers = pytest.importorskip("transformers")
    paths = [write_llama(tmp_path / f"m{i}", seed=i, hidden=16, inter=24, heads=2, kv_heads=1) for i in range(2)]
    receipt = engine.run(PLEAS, [str(p) for p in paths], {"ratio": 0.5}, out=tmp_path / "out", speak=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 36
    assert any("residual" in n and "config.json has no width of its own" in n for n in receipt["notes"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.model.layers[1].mlp.down_proj.weight.shape == (16, 36)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()
    with pytest.raises(NettError, match="one width for all MLPs"):
        engine.run(
            PLEAS, [str(p) for p in paths], {"widths": "model.layers.0.mlp=30"}, out=tmp_path / "no", speak=False
        )

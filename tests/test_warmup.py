"""growtas warmup: it finds all that training launches, under the keys that a launch looks for, and resumes.

What Triton compiles runs in processes without TRITON_INTERPRET (tests/compiling.py).
"""

from __future__ import annotations

import json

import pytest
import torch

from growtas import cli, warmup
from growtas.errors import UsageError
from growtas.ops import dispatch
from growtas.ops.linear import LINEAR
from growtas.space import load_space

pytest.importorskip("triton")


@pytest.fixture
def run(run_script, tmp_path):
    """Runs a script where Triton compiles, with a cache of its own: what it prints, or says as it fails."""

    def run(script: str, status: int = 0) -> str:
        done = run_script(script, TRITON_CACHE_DIR=str(tmp_path / "triton"))
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


TRAIN = """
import json, random, torch, growtas, growtas.nn.block, growtas.nn.linear, growtas.supernet.vit
from growtas import warmup
from growtas.kernels.common import launch

dtype_name, batch = {dtype!r}, {batch}
space = growtas.load_space({space!r})
products, parameters, precision = warmup.DTYPES[dtype_name]
expected = warmup.record(space, [batch], [dtype_name], 1000, (90, None, None))

# The supernet itself, training: every layer of 1,000 random subnets that is of a new kind.
with torch.device("meta"):
    net = growtas.Supernet(space, drop_path_rate=0.1).to(parameters)
net.train()
# The meta device has no autocast; this is what the modules would ask it.
asked = (growtas.nn.linear, growtas.nn.block, growtas.supernet.vit)
for module in asked:
    module.compute_dtype = lambda x: products
rng, seen, layers = random.Random(0), set(), 0
with launch.recording(90) as found, warmup._on_triton((90, None, None)):
    net._cast_shared_weights(products)
    for _ in range(1000):
        subnet = space.sample(rng)
        d = subnet.embed_dim
        if d not in seen:
            seen.add(d)
            images = torch.empty(batch, 3, 224, 224, device="meta", dtype=parameters)
            x = net.forward_embedding(images, d)
            logits = net.forward_head(net.norm(x))
            torch.nn.functional.cross_entropy(
                logits, torch.empty(batch, dtype=torch.long, device="meta")
            ).backward()
        for index, (heads, hidden) in enumerate(zip(subnet.num_heads, subnet.hidden_dims)):
            layers += 1
            if (d, heads, hidden) in seen:
                continue
            seen.add((d, heads, hidden))
            x = torch.empty(batch, 197, d, device="meta", dtype=parameters, requires_grad=True)
            scale = torch.empty(batch, device="meta")
            for scales in (None, (scale, scale)):
                net.blocks[index](x, heads, hidden, (14, 14), scales).sum().backward()
    with torch.no_grad():
        net.eval()
        net(torch.empty(batch, 3, 224, 224, device="meta", dtype=parameters), space.largest())
kinds = sum(isinstance(kind, tuple) for kind in seen)
# A view of a weight finds the shadow by its address, which meta tensors lack: patches meet the weight itself.
bare = warmup.record(space, [batch], [dtype_name], 1000, (90, None, None), shadows=False)
patches = set(key for key in bare if key.startswith("linear.forward._forward "))
missing = sorted(set(found) - set(expected) - patches)
print(json.dumps([layers, kinds, len(found), len(expected), missing]))
"""


def test_a_convolutional_space_has_nothing_to_compile():
    with pytest.raises(UsageError, match="'digits-mobilenet' runs on torch's convolutions"):
        warmup.warmup("digits-mobilenet")


@pytest.mark.parametrize(
    ("space", "dtype", "batch", "signatures"),
    [
        ("autoformer-tiny", "bf16-autocast", 128, 12),
        ("autoformer-small", "fp32", 8, 27),
    ],
)
def test_a_thousand_subnets_need_nothing_that_warmup_has_not_compiled(run, space, dtype, batch, signatures):
    layers, kinds, found, expected, missing = json.loads(
        run(TRAIN.format(space=space, dtype=dtype, batch=batch))
    )
    assert layers >= 12_000 and kinds == signatures  # every kind of layer was drawn
    assert missing == []
    assert 5 < found <= expected < 150  # bounded, and independent of the number of subnets


KEYS = """
import json, torch, triton
import triton.compiler.compiler as compiler
from growtas import warmup
from growtas.kernels import layer_norm, linear, mlp
from growtas.kernels.common import launch
from growtas.warmup import _empty

class Stop(Exception):
    pass

original, keys = compiler.get_cache_key, []

def note(*arguments, **options):
    keys.append(original(*arguments, **options))
    raise Stop

def calls():
    x = _empty(64, 216, dtype=torch.bfloat16, leaf=False)
    shapes = (256,), (1024, 256), (1024,), (64,)
    scale, weight, bias, mean = (_empty(*shape, dtype=torch.float32, leaf=False) for shape in shapes)
    yield lambda: layer_norm.layer_norm_forward(x, scale, scale, 1e-5, torch.bfloat16)
    yield lambda: layer_norm.layer_norm_backward(x, x, scale, scale, mean, mean)
    yield lambda: linear.linear_forward(x, weight, bias, 756)
    yield lambda: linear.linear_gelu_forward(x, weight, bias, 864)
    weights = (scale, scale, 1e-5, weight, bias, weight.t().contiguous(), scale, 864, None, 8, torch.bfloat16)
    yield lambda: mlp.mlp_forward(_empty(64, 216, dtype=torch.float32, leaf=False), *weights)

pairs = []
for capability in (80, 90):
    for call in calls():
        with launch.recording(capability) as found:
            call()
            variant = next(iter(found.values()))
            # The way of a launch, as far as the compiler: no hook stops it before, as none does on a GPU.
            launch._noted.clear()
            compiler.get_cache_key = note
            triton.knobs.runtime.jit_cache_hook = None
            keys.clear()
            for run in (call, lambda: warmup.compile_into_cache(variant, capability)):
                try:
                    run()
                except Stop:
                    pass
            compiler.get_cache_key = original
        pairs.append(list(keys))
print(json.dumps(pairs))
"""


def test_what_is_compiled_has_the_key_that_a_launch_looks_for(run):
    pairs = json.loads(run(KEYS))
    assert len(pairs) == 10
    for launched, compiled in pairs:
        assert launched == compiled
    assert len({launched for launched, _ in pairs}) == 10


COMPILE = """
import json, torch
from growtas import warmup
from growtas.kernels import layer_norm
from growtas.kernels.common import launch
from growtas.warmup import _empty

with launch.recording(90) as found:
    x, scale = _empty(8, 24, dtype=torch.float32, leaf=False), _empty(32, dtype=torch.float32, leaf=False)
    layer_norm.layer_norm_forward(x, scale, scale)
(variant,) = found.values()
print(json.dumps([warmup.compile_into_cache(variant, 90) for _ in range(2)]))
"""


def test_the_cache_makes_it_resumable(run):
    assert json.loads(run(COMPILE)) == [True, False]
    assert json.loads(run(COMPILE)) == [False, False]  # another process, the same cache


@pytest.mark.slow
def test_it_runs_from_the_command_line_in_several_processes(run, tmp_path):
    """One block of one width, and of its kernels the smallest four: the others take a compiler seconds."""
    space = tmp_path / "one.yaml"
    space.write_text(
        "embed_dim: [32]\nnum_heads: [1]\nmlp_ratio: [2]\ndepth: [1]\nimage_size: 4\npatch_size: 2\n"
        "in_channels: 1\nhead_dim: 32\nmax_relative_position: 1\n"
    )
    script = (
        "from growtas import cli, warmup\n"
        "record, small = warmup.record, ('layer_norm.', 'common.rows.')\n"
        "def smallest(*given):\n"
        "    return dict([(k, v) for k, v in sorted(record(*given).items()) if k.startswith(small)][:4])\n"
        "warmup.record = smallest\n"
        f"arguments = ['warmup', {str(space)!r}, '--batch', '2', '--dtype', 'fp32', '--arch', '80']\n"
        "arguments += ['--num-classes', '10', '--jobs']\n"
        "assert cli.main([*arguments, '2']) == cli.main([*arguments, '1']) == 0\n"
    )
    first, second = run(script).splitlines()
    assert first == "4 variants for one on sm_80: 4 compiled, 0 there before"
    assert second == "4 variants for one on sm_80: 0 compiled, 4 there before"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu_and_no_architecture_is_a_sentence(run, capsys):
    script = "import sys\nfrom growtas import cli\nsys.exit(cli.main(['warmup', 'autoformer-tiny']))"
    assert "Name architectures: --arch 80 90." in run(script, status=1)
    assert cli.main(["warmup", "autoformer-tiny"]) == 2  # here kernels are interpreted
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_wrong_arguments_are_usage_errors():
    for arguments in ({"dtype": ("bf32",)}, {"dtype": ()}, {"batch": (8, 0)}, {"batch": ()}):
        with pytest.raises(UsageError):
            warmup.warmup("autoformer-tiny", **arguments)
    assert cli.main(["warmup", "autoformer-tini"]) == 2


def test_each_pass_takes_the_backend_that_it_asks_for():
    """The dispatcher keeps what it found: the kernels between cuBLAS's GEMMs were left out once."""
    x = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
    for name in ("triton", "cublas", "triton"):
        with warmup._on_triton((90, None, None), name):
            assert LINEAR(x, 64) is LINEAR.load(name)
    with dispatch.use("torch"):
        assert LINEAR(x, 64) is LINEAR.load("torch")


def test_signatures_are_those_of_the_spaces():
    counts = [len(set(warmup.signatures(load_space(f"autoformer-{n}")))) for n in ("tiny", "small", "base")]
    assert counts == [12, 27, 18]

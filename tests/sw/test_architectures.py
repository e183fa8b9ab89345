"""The networks that `sigbit model` writes have the known sizes, are read, and keep their activations in range."""

from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from sigbit.architectures import ARCHITECTURES, write_architecture
from sigbit.cli import main
from sigbit.compiler import compile
from sigbit.float_model import run_float
from sigbit.graph import Conv, Linear, ModelError
from sigbit.onnx_reader import read_onnx
from sigbit.passes import lower
from sigbit.quantize import quantize
from sigbit_hw.spec.config import PRESETS

#: Parameters as torchvision counts them (for ResNet-20: 0.27 M in He et al. 2016, table 6), and multiplications of
#: convolutions and fully connected layers.
KNOWN = {
    "resnet18": (11_689_512, 1_814_073_344),
    "mobilenetv2": (3_504_872, 300_774_272),
    "alexnet": (61_100_840, 714_188_480),
    "resnet20": (269_722, 40_551_040),
}
#: AlexNet's file has 244 MB.
NAMES = ["resnet18", "mobilenetv2", "resnet20", pytest.param("alexnet", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def written(folder):
    """Path and counts of a network, written once."""
    done = {}

    def write(name):
        if name not in done:
            path = folder / f"{name}.onnx"
            done[name] = path, write_architecture(name, path, seed=1)
        return done[name]

    return write


def images(name, count):
    size = ARCHITECTURES[name][0]
    random = np.random.default_rng(7)
    areas = random.standard_normal((count, 3, size // 8, size // 8)).repeat(8, axis=2).repeat(8, axis=3)
    return (0.9 * areas + 0.4 * random.standard_normal(areas.shape)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_known_numbers_of_parameters_and_macs(name, written):
    path, counts = written(name)
    parameters, macs = KNOWN[name]
    assert (counts["parameters"], counts["macs"]) == (parameters, macs)
    # Counted once more from the file.
    model = onnx.load(path)
    statistics = {
        source for node in model.graph.node if node.op_type == "BatchNormalization" for source in node.input[3:]
    }
    read = {
        source
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "BatchNormalization")
        for source in node.input[1:]
    }
    trained = [value for value in model.graph.initializer if value.name in read - statistics]
    assert sum(prod(value.dims) for value in trained) == parameters
    graph = read_onnx(path)
    shapes = graph.shapes
    pixels = {node.name: prod(shapes[node.output][1:]) for node in graph.nodes if isinstance(node, Conv | Linear)}
    layers = [node for node in graph.nodes if isinstance(node, Conv | Linear) and not getattr(node, "copy", False)]
    assert sum(node.weight.size * pixels[node.name] for node in layers) == macs


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_valid_onnx_for_images_of_its_size(name, written):
    path, counts = written(name)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 13
    (value,) = model.graph.input
    assert tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)[1:] == counts["input_shape"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "resnet20"])
def test_activations_stay_in_range_on_images_that_no_statistic_saw(name, written):
    """Outputs of the deepest layers would explode or vanish if statistics did not fit."""
    path, _ = written(name)
    model = onnx.load(path)
    norms = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in norms)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, *outputs = session.run(None, {"input": images(name, 1)})
    assert 0.1 < logits.std() < 10
    for output, values in zip(norms, outputs, strict=True):
        assert 0.4 < values.std() < 2.5, output


def test_the_reader_computes_a_network_as_onnxruntime_does(written):
    path, _ = written("resnet20")
    batch = images("resnet20", 3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": batch})[0]
    computed = run_float(lower(read_onnx(path)), batch)[:, :, 0, 0]
    np.testing.assert_allclose(computed, expected, rtol=1e-3, atol=1e-3)


def test_a_seed_gives_its_weights_again(folder, written):
    path, _ = written("resnet20")

    def weights(file):
        return [numpy_helper.to_array(value) for value in onnx.load(file).graph.initializer if "weight" in value.name]

    for seed, same in ((1, True), (2, False)):
        write_architecture("resnet20", folder / "again.onnx", seed)
        pairs = zip(weights(path), weights(folder / "again.onnx"), strict=True)
        assert all((a == b).all() for a, b in pairs) == same


def test_resnet20_runs_whole_on_the_board_preset(written):
    path, _ = written("resnet20")
    program = compile(
        quantize(path, images("resnet20", 2), weights="esb:4,2", activations="esbu:4,2"), PRESETS["zcu102"]
    )
    assert not any(packet.rows for packet in program.image[0])
    assert sum(layer["macs"] for layer in program.layers) > KNOWN["resnet20"][1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chained"), [("resnet18", set()), ("mobilenetv2", {2, 3, 4}), ("alexnet", set())])
def test_large_networks_run_on_the_board_preset_in_bands(written, name, chained):
    path, _ = written(name)
    program = compile(quantize(path, images(name, 2), weights="esb:4,2", activations="esbu:4,2"), PRESETS["zcu102"])
    assert [packet.rows for packet in program.image[0] if packet.rows][-1][1] == program.input.rows
    assert {i for i, layer in enumerate(program.layers) if len(layer["instructions"]) > 1} >= chained


def test_the_command_writes_a_network_or_says_why_not(folder, capsys):
    path = folder / "command.onnx"
    assert main(["model", "resnet20", "--seed", "3", "-o", str(path)]) == 0
    assert "269722 parameters, 40551040 MACs per 3x32x32 image" in capsys.readouterr().out
    assert path.exists()
    assert main(["model", "resnet20", "-o", str(folder / "absent" / "x.onnx")]) == 2
    assert "does not exist" in capsys.readouterr().err
    for wrong in (["lenet"], ["resnet20", "--seed", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            main(["model", *wrong, "-o", str(path)])


def test_unknown_networks_and_folders_are_refused(folder):
    with pytest.raises(ModelError, match="Unknown network 'lenet'; there are resnet18, mobilenetv2, alexnet, resnet20"):
        write_architecture("lenet", folder / "x.onnx")
    with pytest.raises(ModelError, match="Cannot write"):
        write_architecture("resnet20", folder / "absent" / "x.onnx")

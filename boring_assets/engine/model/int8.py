"""An image tower in int8 on the CPU, by ONNX Runtime.

The weights of matrix products are int8, scaled for each output channel. Their inputs are quantized as they
come, so no calibration data is needed. Everything else stays fp32.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)
_OPSET = 17
# A protobuf file holds at most 2 GiB; the weights of a larger model are a file of their own.
_MOST_BYTES = 2**30


class Int8Tower:
    """An image tower in int8; several threads may call it at the same time."""

    def __init__(self, tower: "torch.nn.Module", example: "Tensor", threads: int, name: str) -> None:
        """Converts a tower in fp32, which takes some seconds and, for a large model, a minute.

        `example` is images as it takes them, float32 [2, 3, height, width].

        Raises:
            ModelError: ONNX Runtime is not installed, or the tower has a layer that cannot be converted.
        """
        try:
            import onnx  # noqa: F401 - the export needs it
            import onnxruntime
            from onnxruntime.quantization import QuantType, quantize_dynamic
            from onnxruntime.quantization.shape_inference import quant_pre_process
        except ImportError as error:
            raise ModelError(
                f"BORING_PRECISION is int8, which needs {error.name}, and it is not installed. Install it: "
                'pip install "boring_assets[int8]", or use another precision.'
            ) from error
        log.info("Converting %s to int8.", name)
        large = sum(weight.nbytes for weight in tower.parameters()) > _MOST_BYTES
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoders need the cores
        with tempfile.TemporaryDirectory() as folder:
            exact, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
            try:
                _export(tower, example, exact)
                quant_pre_process(exact, prepared, skip_symbolic_shape=True, save_as_external_data=large)
                quantize_dynamic(
                    prepared,
                    small,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=large,
                )
                self._session = onnxruntime.InferenceSession(small, options, ["CPUExecutionProvider"])
            # The exporter raises nearly any exception for a layer that it does not know.
            except Exception as error:
                raise ModelError(
                    f"{name} cannot be converted to int8 ({type(error).__name__}: {str(error)[:300]}). Set "
                    "BORING_PRECISION to fp32 or bf16."
                ) from error

    def __call__(self, images: "Tensor") -> "Tensor":
        """Returns the features, float32 [n, dim], of float32 [n, 3, height, width]."""
        import torch

        (features,) = self._session.run(None, {"images": images.numpy()})
        return torch.from_numpy(features)


def _export(tower: "torch.nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    # The fast path is one operator that ONNX does not have.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower,
                (example,),
                path,
                # The newer exporter takes three times as long, and imports what `model.imports` leaves out.
                dynamo=False,
                input_names=["images"],
                output_names=["features"],
                dynamic_axes={"images": {0: "count"}, "features": {0: "count"}},
                opset_version=_OPSET,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

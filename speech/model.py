"""The network, defined in Keras 3. Importing this module is cheap; building a network imports TensorFlow."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from speech.alphabet import Alphabet
from speech.errors import ModelMismatch
from speech.features import N_BINS

if TYPE_CHECKING:
    import keras

CHANNELS = 32  # of both convolutions


def build_model(
    rnn_layers: int = 3, rnn_units: int = 256, n_outputs: int = Alphabet().size, dropout: float = 0.3
) -> "keras.Model":
    """The DeepSpeech2-like network of the keras.io CTC example: (batch, frames, 193) → (batch, steps, n_outputs).

    The outputs are probabilities, one row for every two frames. Layers are named as in the example
    (https://keras.io/examples/audio/ctc_asr/), so that its weights and those of its descendants fit.
    """
    from keras import Input, Model, layers

    inputs = Input((None, N_BINS), name="input")
    x = layers.Reshape((-1, N_BINS, 1), name="expand_dim")(inputs)
    for index, (kernel, strides) in enumerate((((11, 41), (2, 2)), ((11, 21), (1, 2))), start=1):
        convolution = layers.Conv2D(
            CHANNELS, kernel, strides=strides, padding="same", use_bias=False, name=f"conv_{index}"
        )
        x = convolution(x)
        x = layers.BatchNormalization(name=f"conv_{index}_bn")(x)
        x = layers.ReLU(name=f"conv_{index}_relu")(x)
    x = layers.Reshape((-1, x.shape[-2] * x.shape[-1]), name="flatten_bins")(x)
    for index in range(1, rnn_layers + 1):
        gru = layers.GRU(rnn_units, reset_after=True, return_sequences=True, name=f"gru_{index}")
        x = layers.Bidirectional(gru, name=f"bidirectional_{index}", merge_mode="concat")(x)
        if index < rnn_layers:
            x = layers.Dropout(dropout, name=f"dropout_{index}")(x)
    x = layers.Dense(2 * rnn_units, name="dense_1")(x)
    x = layers.ReLU(name="dense_1_relu")(x)
    x = layers.Dropout(dropout, name="dropout_dense")(x)
    outputs = layers.Dense(n_outputs, activation="softmax", name="dense_2")(x)
    return Model(inputs, outputs, name="DeepSpeech_2")


def load_weights_file(file: Path, rnn_layers: int, rnn_units: int, n_outputs: int) -> "keras.Model":
    """The network of a ``.keras`` file; its layers must be those of `build_model`.

    The architecture is built by this code and only the weights are taken from the file: nothing in it is executed.

    Raises:
        ModelMismatch: the file does not fit the architecture.
    """
    model = build_model(rnn_layers, rnn_units, n_outputs)
    try:
        with zipfile.ZipFile(file) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        found = sum(layer["class_name"] == "Bidirectional" for layer in layers)
        if found != rnn_layers:  # Keras would load the first ones and leave the others out without a word
            raise ValueError(f"{found} recurrent layers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras warns of each part that does not fit, then raises
            model.load_weights(file)
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ModelMismatch(
            f"expected {file.name} to hold {rnn_layers} × {rnn_units} units and {n_outputs} outputs, found: {error}"
        ) from error
    return model


def masked_log_probs(
    model: "keras.Model",
) -> Callable[[npt.NDArray[np.float32], npt.NDArray[np.int32]], npt.NDArray[np.float32]]:
    """Function of padded clips and their lengths that gives each one's log-probabilities as if it were alone.

    ``(frames (batch, frames, 193), n_frames (batch,)) -> (batch, ⌈frames / 2⌉, n_outputs)``. Zero padding leaks through
    convolutions and the backward GRUs: so each convolution's output is zeroed behind the clip's end, the GRUs get the
    true lengths, and the number of frames is made even, because a stride-2 "same" convolution pads odd and even inputs
    differently. For one clip with an even number of frames this is ``predict``.
    """
    import tensorflow as tf

    @tf.function(input_signature=(tf.TensorSpec((None, None, N_BINS)), tf.TensorSpec((None, None), tf.bool)))
    def compute(x: Any, mask: Any) -> Any:
        for layer in model.layers[1:]:
            if layer.name.startswith("bidirectional"):
                x = layer(x, mask=mask, training=False)
            elif layer.name.endswith("bn") or layer.name.startswith("dropout"):
                x = layer(x, training=False)
            else:
                x = layer(x)
            if layer.name.startswith("conv") and layer.name.endswith("relu"):
                x = x * tf.cast(mask, tf.float32)[:, :, None, None]
        return tf.math.log(tf.maximum(x, 1e-30))

    def log_probs(frames: npt.NDArray[np.float32], n_frames: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        if frames.shape[1] % 2:
            frames = np.pad(frames, ((0, 0), (0, 1), (0, 0)))
        mask = np.arange(frames.shape[1] // 2) < (n_frames[:, None] + 1) // 2
        return np.asarray(compute(frames, mask), np.float32)

    return log_probs

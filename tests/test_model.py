"""The network is the keras.io example's, layer by layer."""

import numpy as np
import pytest

from speech.errors import ModelMismatch
from speech.features import N_BINS
from speech.model import build_model, load_weights_file
from speech.model_card import WEIGHTS


def keras_io_model(input_dim: int, output_dim: int, rnn_layers: int, rnn_units: int):
    """The network of https://keras.io/examples/audio/ctc_asr/, word for word but for its default sizes and a last name.

    Left unnamed, Keras would number the last layer by how many it has named before, and could meet "dense_1" again.
    """
    import keras
    from keras import layers

    input_spectrogram = layers.Input((None, input_dim), name="input")
    x = layers.Reshape((-1, input_dim, 1), name="expand_dim")(input_spectrogram)
    x = layers.Conv2D(filters=32, kernel_size=[11, 41], strides=[2, 2], padding="same", use_bias=False, name="conv_1")(
        x
    )
    x = layers.BatchNormalization(name="conv_1_bn")(x)
    x = layers.ReLU(name="conv_1_relu")(x)
    x = layers.Conv2D(filters=32, kernel_size=[11, 21], strides=[1, 2], padding="same", use_bias=False, name="conv_2")(
        x
    )
    x = layers.BatchNormalization(name="conv_2_bn")(x)
    x = layers.ReLU(name="conv_2_relu")(x)
    x = layers.Reshape((-1, x.shape[-2] * x.shape[-1]))(x)
    for i in range(1, rnn_layers + 1):
        recurrent = layers.GRU(
            units=rnn_units, activation="tanh", recurrent_activation="sigmoid", use_bias=True,
            return_sequences=True, reset_after=True, name=f"gru_{i}",
        )  # fmt: skip
        x = layers.Bidirectional(recurrent, name=f"bidirectional_{i}", merge_mode="concat")(x)
        if i < rnn_layers:
            x = layers.Dropout(rate=0.5)(x)
    x = layers.Dense(units=rnn_units * 2, name="dense_1")(x)
    x = layers.ReLU(name="dense_1_relu")(x)
    x = layers.Dropout(rate=0.5)(x)
    output = layers.Dense(units=output_dim + 1, activation="softmax", name="output")(x)
    return keras.Model(input_spectrogram, output, name="DeepSpeech_2")


def test_weights_of_the_example_fit_and_compute_the_same():
    example, ours = keras_io_model(N_BINS, 31, 2, 8), build_model(2, 8)
    for layer in example.layers:
        if layer.get_weights() and layer.name.startswith(("conv", "bidirectional", "dense_1")):
            ours.get_layer(layer.name).set_weights(layer.get_weights())
    ours.get_layer("dense_2").set_weights(example.layers[-1].get_weights())
    frames = np.random.default_rng(0).standard_normal((1, 60, N_BINS), np.float32)
    np.testing.assert_allclose(ours.predict(frames, verbose=0), example.predict(frames, verbose=0), atol=1e-6)


def test_weights_of_another_shape_are_refused(tiny_model):
    assert load_weights_file(tiny_model / WEIGHTS, 2, 16, 32).output_shape[-1] == 32
    with pytest.raises(ModelMismatch, match="3 × 16"):
        load_weights_file(tiny_model / WEIGHTS, 3, 16, 32)
    with pytest.raises(ModelMismatch, match="1 × 16.*2 recurrent layers"):
        load_weights_file(tiny_model / WEIGHTS, 1, 16, 32)
    with pytest.raises(ModelMismatch, match="33 outputs"):
        load_weights_file(tiny_model / WEIGHTS, 2, 16, 33)

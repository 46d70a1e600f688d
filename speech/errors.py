"""Everything that can go wrong, in one tree. Every message says what was expected and what was found.

SpeechError
├── AudioError                     the client's sound is at fault
│   ├── NotAWav                    not audio that we read
│   ├── DamagedWav                 empty, or shorter than its header promises
│   ├── UnsupportedWav             wrong sample rate, channel count or sample width
│   ├── AudioTooShort              not even one spectrogram frame
│   └── AudioTooLong               more seconds than the limit allows
├── ModelError                     the operator's model is at fault
│   ├── ModelNotFound              no such folder, or a file of it is missing
│   └── ModelMismatch              the card, the weights and the code disagree
├── InferenceFailed                the network itself failed
└── Unavailable                    not now
    ├── NotReady                   the model is still loading, or the service is stopping
    ├── QueueFull                  no room in the queue; carries when to try again
    └── DeadlineExceeded           the answer would come too late
"""


class SpeechError(Exception):
    """Base of every error this package raises on purpose."""


class AudioError(SpeechError):
    """The sound that came in cannot be used."""


class NotAWav(AudioError):
    """The bytes are not audio that we read."""


class DamagedWav(AudioError):
    """The file is empty, or shorter than its header promises."""


class UnsupportedWav(AudioError):
    """The sample rate, channel count or sample width is not the one that the model was trained on."""


class AudioTooShort(AudioError):
    """The clip is shorter than one spectrogram frame."""


class AudioTooLong(AudioError):
    """The clip lasts longer than the limit allows."""


class ModelError(SpeechError):
    """The model that was asked for cannot be used."""


class ModelNotFound(ModelError):
    """The model's folder, or a file that belongs to it, is missing."""


class ModelMismatch(ModelError):
    """The model's card, its weights and this code disagree."""


class InferenceFailed(SpeechError):
    """The network raised an error on sound that passed every check."""


class Unavailable(SpeechError):
    """The service cannot answer now.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """The model is still loading, or the service is stopping."""


class QueueFull(Unavailable):
    """The queue holds as many seconds of audio as it may."""


class DeadlineExceeded(Unavailable):
    """The answer did not come within the time that a request may take."""

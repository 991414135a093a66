"""Every error that Sightline raises on purpose.

    SightlineError
    |-- ShapeError    (ValueError)           a size, a number of channels or a grid that does not fit
    |-- DTypeError    (TypeError)            an element type that is not accepted
    |-- DeviceError   (ValueError)           tensors on different or unsupported devices
    |-- FrameError    (ValueError)           a frame whose values cannot be used (NaN, Inf)
    |-- BackendError  (NotImplementedError)  no executor can do what was asked
    |-- CaptureError  (RuntimeError)         a model that cannot be turned into a graph
    |-- ConfigError   (ValueError)           a configuration with an unknown key or an impossible value
    |-- TrainingError (RuntimeError)         a training that cannot go on (its loss is no number any more, its data ended)
    |-- CheckpointError (ValueError)         weights that do not fit the network that they are loaded into
    `-- MediaError    (OSError)              a video, image or camera that cannot be read or written

Each class also inherits the built-in exception that a caller would expect, so `except ValueError` works.
A message names the argument, what was expected, what came, and the remedy; it is built only when it is needed.
"""


class SightlineError(Exception):
    """Root of all errors raised on purpose by Sightline."""


class ShapeError(SightlineError, ValueError):
    """A size, a number of channels or a grid does not fit."""


class DTypeError(SightlineError, TypeError):
    """An element type is not accepted."""


class DeviceError(SightlineError, ValueError):
    """Tensors lie on different devices, or on one that is not supported."""


class FrameError(SightlineError, ValueError):
    """A frame holds values that cannot be used (NaN or Inf)."""


class BackendError(SightlineError, NotImplementedError):
    """No executor can do what was asked; the message lists each one's reasons."""


class CaptureError(SightlineError, RuntimeError):
    """A model could not be turned into a graph."""


class ConfigError(SightlineError, ValueError):
    """A configuration holds an unknown key or an impossible value."""


class TrainingError(SightlineError, RuntimeError):
    """A training cannot go on."""


class CheckpointError(SightlineError, ValueError):
    """Saved weights do not fit the network that they are loaded into."""


class MediaError(SightlineError, OSError):
    """A video, an image or a camera could not be read or written."""

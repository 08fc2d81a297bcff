"""Run models that s2d-convert made: `Dispatcher(folder)(images)`."""

from s2d_runtime.dispatcher import Answer, Dispatcher, DispatcherError, Manifest, Policy, Stage, TensorSpec

__all__ = ["Answer", "Dispatcher", "DispatcherError", "Manifest", "Policy", "Stage", "TensorSpec"]

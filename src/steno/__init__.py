"""steno runs an autoregressive model faster and in less memory, and proves what that changed."""

__version__ = "0.1.0"

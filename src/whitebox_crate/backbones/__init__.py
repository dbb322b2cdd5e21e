"""Networks of other libraries, read like models of this package: which they are, and where their parts are."""

from .adapters import Adapter, Readable, readable, register_adapter
from .readings import attention_readings
from .structure import Backbone, Structure

__all__ = ["Adapter", "Backbone", "Readable", "Structure", "attention_readings", "readable", "register_adapter"]

"""The base class of every typed setting."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen and strict about unknown keys.

    The pipeline loader validates in pydantic's strict JSON mode, so that ``"4"`` is not a number
    and ``yes`` is not an integer there; from Python, paths may be strings and tuples lists.
    Fields that choose code stay strings; see ``core.resolve``.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

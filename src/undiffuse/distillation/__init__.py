"""Losses that make a model of few calls from one of many."""

from undiffuse.distillation.consistency import consistency_loss, heun_teacher, karras_level, straight_teacher

__all__ = ["consistency_loss", "heun_teacher", "karras_level", "straight_teacher"]

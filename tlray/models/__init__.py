"""Pretrained backbones: their weights, their stages, and what a task's head is built on."""

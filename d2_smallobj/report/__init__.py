"""Pictures of results (numpy, matplotlib; no detectron2)."""

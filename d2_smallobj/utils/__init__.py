"""Small helpers without dependencies on torch or detectron2."""

"""Data sets in, numbers out: the paper's measurements on VOC, COCO and folders, resumed after a kill."""

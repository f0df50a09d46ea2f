"""dnstrail: watches every DNS message of a node and says where and why a lookup was lost."""

__version__ = "0.1.0"

"""Lets the Triton kernels run where there is no GPU: set before anything imports them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

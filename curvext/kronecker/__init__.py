"""Kronecker-factored and block-diagonal curvature: factors, their algebra, and the operators made of them."""

from curvext.kronecker.block_diagonal import BlockDiagonalOperator
from curvext.kronecker.blocks import Factors
from curvext.kronecker.kfac import EKFACOperator, KFACOperator
from curvext.kronecker.shampoo import ShampooOperator

__all__ = [
    "BlockDiagonalOperator",
    "EKFACOperator",
    "Factors",
    "KFACOperator",
    "ShampooOperator",
]

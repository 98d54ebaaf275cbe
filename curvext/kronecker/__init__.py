"""Kronecker-factored and block-diagonal curvature: factors, their algebra, and the operators made of them."""

from curvext.kronecker.block_diagonal import BlockDiagonalOperator
from curvext.kronecker.blocks import Factors
from curvext.kronecker.ekfac import EKFACOperator
from curvext.kronecker.kfac import KFACOperator
from curvext.kronecker.saving import load_factors, save_factors
from curvext.kronecker.shampoo import ShampooOperator

__all__ = [
    "BlockDiagonalOperator",
    "EKFACOperator",
    "Factors",
    "KFACOperator",
    "ShampooOperator",
    "load_factors",
    "save_factors",
]

"""Compile the Triton kernels to machine code without a GPU.

    python -m tests.cubins time_attention 80 90 100

This needs its own process, because kernels cannot be compiled while Triton's interpreter is on.
Prints the kernel's name, the number of the case, the generation of the GPU and the size of the code.
"""

import sys
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.bfloat16: "*bf16:16", torch.float16: "*fp16:16", torch.float32: "*fp32:16"}


def time_attention() -> Iterator[tuple]:
    """Kernel, constants, argument types other than i32 (":16": multiples of 16), and options."""
    from genie_fn.kernels import time_attention as module

    types = dict.fromkeys(("dy", "dq", "dk", "dv", "out", "q", "k", "v"), "*bf16")
    types |= dict.fromkeys(("q_scale", "k_scale", "cos", "sin", "dscale"), "*fp32")
    types |= {"visible": "*i8", "scale": "fp32"}
    for kernel in (module._forward, module._backward):
        for fused in (True, False):
            constants = module.tiling(16, 16, 64)
            constants |= {"FUSED": fused, "TYPE": module.TYPES[torch.bfloat16]}
            yield kernel, constants, types, {"num_warps": 4}


def space_attention() -> Iterator[tuple]:
    """Frames of one and of several tiles, with and without the norm, and the widest heads.

    Arguments are aligned as those of a packed product: rows of whole cache lines, which copies to
    shared memory need.
    """
    from genie_fn.kernels import space_attention as module

    for tokens, dim, dtype, norm in (
        (64, 64, torch.bfloat16, True),
        (250, 128, torch.bfloat16, True),
        (256, 128, torch.float32, True),
        (200, 40, torch.float16, False),
    ):
        pointers = ("q", "k", "v", "y", "dy", "dq", "dk", "dv", "out")
        types = dict.fromkeys(pointers, POINTERS[dtype])
        scales = ("q_scale", "k_scale", "dq_scale", "dk_scale", "lse", "delta")
        types |= dict.fromkeys(scales, "*fp32:16")
        strides = [tensor + axis for tensor in "qkvy" for axis in "btng"]
        types |= dict.fromkeys(strides, "i32:16" if dim % 16 == 0 else "i32")
        types |= {"scale": "fp32", "scale_log2": "fp32"}
        for kernel in (module._forward, module._backward_queries, module._backward_keys):
            constants = module.tiling(kernel, tokens, dim, dtype.itemsize)
            constants |= {"NORM": norm, "TYPE": module.TYPES[dtype]}
            constants |= {name: 1 for name in ("qe", "ke", "ve", "ye") if name in kernel.arg_names}
            if not (constants["WHOLE"] and kernel is module._backward_keys):
                yield kernel, constants, types, module.options(constants, dtype.itemsize)


def lfq() -> Iterator[tuple]:
    """18 bits with all rows, as in training; one bit with a share of the rows, so that a half is empty."""
    from genie_fn.kernels import lfq_triton as module

    types = dict.fromkeys(("codes", "sums", "dcodes", "dsums", "out", "g"), "*fp32")
    types |= {"scale": "fp32", "z": "*bf16", "dz": "*bf16", "ids": "*i64", "times": "*i64"}
    for bits in (18, 1):
        rounding = module.round_tiling(bits) | {"TIMES": bits == 1}
        if bits != 1:
            rounding["times"] = None
        for kernel in (module._round, module._round_backward):
            yield kernel, rounding, types, {"num_warps": 4}
        yield module._sum_codes, module.sum_tiling(bits), types, {"num_warps": 4}
        for tiling in module.gradient_tilings(bits):
            yield module._sum_codes_backward, tiling, types, {"num_warps": 4}


# Shared memory, in KiB, of the GPU with the least of it that runs the code: sm_86 for sm_80.
SHARED_KIB = {80: 99, 90: 227, 100: 227}
CASES = {case.__name__: case for case in (time_attention, space_attention, lfq)}


def main(name: str, *capabilities: str) -> None:
    for number, (kernel, constants, types, options) in enumerate(CASES[name]()):
        kinds = {
            arg: "constexpr" if arg in constants else types.get(arg, "i32")
            for arg in kernel.arg_names
        }
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(kinds.values())
            if kind.endswith(":16")
        }
        signature = {arg: kind.removesuffix(":16") for arg, kind in kinds.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        for capability in map(int, capabilities):
            target = GPUTarget("cuda", capability, 32)
            binary = triton.compile(source, target=target, options=options)
            assert binary.metadata.shared <= SHARED_KIB[capability] * 1024, (
                f"{kernel.__name__} {number} takes too much shared memory"
            )
            print(kernel.__name__, number, capability, len(binary.asm["cubin"]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What SGLang's CPU engine asks `sgl_kernel` for, for machines where the real CPU build is absent.

This folder is on no import path by itself: `sglang_das.cpu.install()` puts it there, and only when the CPU engine is
asked for and the real kernels are missing. Names that are not here fail as ImportError, as SGLang's own probes for
optional kernels expect. The operator `torch.ops.sgl_kernel.convert_weight_packed` is absent on purpose: SGLang takes it
for a sign of the real library.
"""

import sgl_kernel.sampling  # noqa: F401  (registers the operator murmur_hash32_cpu)
from sgl_kernel.kvcacheio import copy_all_layer_kv_cache_cpu
from sgl_kernel.speculative import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_tree_kernel_efficient_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    rotate_input_ids_cpu,
    verify_tree_greedy_cpu,
)

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]

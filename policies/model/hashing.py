"""Random-projection hashes of the indexer's queries and keys, over several tables (SimHash, Charikar 2002).

A table's planes cut the space into 2^bits buckets; vectors at a small angle tend to share one. Index keys
pass a layer norm and so are nearly of one length: the angle is what tells their products apart. The planes
come from the config's seed alone and are the same in every layer, mode and process.
"""

import functools

import numpy as np
import torch
from torch import Tensor


@functools.lru_cache(maxsize=8)
def planes(seed: int, dim: int, num_tables: int, num_bits: int) -> Tensor:
    """[dim, tables * bits] float32, standard normal."""
    generator = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(generator.standard_normal((dim, num_tables * num_bits), dtype=np.float32))


def bucket_codes(x: Tensor, planes_IP: Tensor, num_bits: int) -> Tensor:
    """[..., I] to [..., tables] int64: the bucket in each table."""
    bits = (x.float() @ planes_IP.to(x.device)).unflatten(-1, (-1, num_bits)) > 0
    return (bits.long() << torch.arange(num_bits, device=x.device)).sum(-1)


def bucket_votes(query_codes: Tensor, weights: Tensor, key_codes: Tensor, num_bits: int) -> Tensor:
    """Votes [N, R, S]: for each pair the sum over heads of weight x tables in which both share a bucket.

    Args:
        query_codes: [N, H, R, tables], of each head.
        weights: [N, H, R], signed.
        key_codes: [N, S, tables].
    """
    count, heads, num_queries, num_tables = query_codes.shape
    votes = weights.new_zeros(count, num_queries, key_codes.shape[1])
    for table in range(num_tables):
        # Each bucket's weight first, so that the price of a key does not depend on the number of heads.
        buckets = weights.new_zeros(count, num_queries, 1 << num_bits)
        for head in range(heads):  # one by one: a scatter of all would add in no fixed order
            codes = query_codes[:, head, :, table, None]
            buckets.scatter_add_(2, codes, weights[:, head, :, None])
        keys = key_codes[:, None, :, table].expand(-1, num_queries, -1)
        votes += buckets.gather(2, keys)
    return votes

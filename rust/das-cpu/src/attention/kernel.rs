//! The walk over blocks of keys, common to all instruction sets.
//!
//! Per block and row: scores, the running maximum, weights `exp2(score - maximum)`, then sum and weighted values, rescaled
//! when the maximum rose (online softmax). A block's boundaries depend only on positions in the row's visible sequence.

use super::{BLOCK, Heads, Plan, Request, Sight, Tensors, Tile, lanes};
use crate::machine::{Dtype, Isa, fetch};
use std::ops::Range;

/// Rows that share loads in the inner loops.
pub(super) const ROWS: usize = 4;

/// A tile and some key-value heads of a step.
pub(super) struct Task<'a> {
    pub plan: &'a Plan,
    pub heads: Heads,
    pub tensors: &'a Tensors,
    /// Times log2(e), as weights are powers of two.
    pub scale: f32,
    pub tile: Tile,
    pub kv_heads: Range<usize>,
}

/// The inner loops for one element type and instruction set.
///
/// A "query row" here is one head of one token. All state of a tile lives in [`Scratch`].
pub(super) trait Inner {
    /// Element of the tensors.
    type Element: Copy;
    /// What queries and keys are multiplied as: one or two elements.
    type Word: Copy + Default;
    /// Softmax weights as they meet the values.
    type Weight: Copy + Default;
    /// Elements per word.
    const PACKED: usize;
    /// Output elements are kept in a multiple of this many.
    const VALUE_LANES: usize;

    /// Copies a query head into words, zero-padded.
    ///
    /// # Safety
    /// `from` is valid for `dim` elements.
    unsafe fn load_query(from: *const Self::Element, dim: usize, to: &mut [Self::Word]);

    /// Writes keys, `offset` elements from where the pointers point, as words transposed to `[word][BLOCK]`. Columns beyond
    /// the last key, up to a multiple of 16, may hold anything.
    ///
    /// # Safety
    /// Every pointer is valid for `offset + dim` elements; there is at least one.
    unsafe fn load_keys(
        keys: &[*const Self::Element],
        offset: usize,
        dim: usize,
        to: &mut [Self::Word],
    );

    /// Scores of `N` query rows: `scores[r][key] = sum over words of query * key`, words in order, for all columns loaded.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn scores<const N: usize>(
        query: &[Self::Word],
        keys: &[Self::Word],
        count: usize,
        scores: &mut [f32],
    );

    /// Online softmax of one row: turns scores into weights, updates maximum and sum, returns the factor for older sums.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn weigh(
        scores: &mut [f32],
        count: usize,
        scale: f32,
        maximum: &mut f32,
        sum: &mut f32,
        weights: &mut [Self::Weight],
    ) -> f32;

    /// `sums[r] = sums[r] * factor[r] + sum over keys of weight * value`, keys in order. Values begin `offset` elements from
    /// where the pointers point.
    ///
    /// # Safety
    /// Every pointer is valid for `offset + dim` elements.
    unsafe fn accumulate<const N: usize>(
        values: &[*const Self::Element],
        offset: usize,
        dim: usize,
        weights: &[Self::Weight],
        factors: &[f32; ROWS],
        sums: &mut [f32],
    );

    /// Writes `sums / sum`.
    ///
    /// # Safety
    /// `to` is valid for `dim` elements.
    unsafe fn store(sums: &[f32], sum: f32, dim: usize, to: *mut Self::Element);
}

/// Working memory of one task. Query rows are numbered by key-value head, token, head within the group.
struct Scratch<I: Inner> {
    query: Vec<I::Word>,
    keys: Vec<I::Word>,
    sums: Vec<f32>,
    maximum: Vec<f32>,
    sum: Vec<f32>,
    scores: [f32; ROWS * BLOCK],
    weights: [I::Weight; ROWS * BLOCK],
    /// Words per query or key head, and sums per value head.
    words: usize,
    value_lanes: usize,
}

impl<I: Inner> Scratch<I> {
    fn new(rows: usize, heads: Heads) -> Self {
        let words = heads.key_dim.div_ceil(I::PACKED);
        let value_lanes = heads.value_dim.next_multiple_of(I::VALUE_LANES);
        Self {
            query: vec![I::Word::default(); rows * words],
            keys: vec![I::Word::default(); words * BLOCK],
            sums: vec![0.0; rows * value_lanes],
            maximum: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            scores: [0.0; ROWS * BLOCK],
            weights: [I::Weight::default(); ROWS * BLOCK],
            words,
            value_lanes,
        }
    }

    /// Adds the loaded keys and their values, `count` of them, to `N` query rows from `row` on.
    ///
    /// # Safety
    /// The pointers are valid for `offset + dim` elements; the instruction set is there.
    #[inline(always)]
    unsafe fn add<const N: usize>(
        &mut self,
        row: usize,
        values: &[*const I::Element],
        offset: usize,
        dim: usize,
        scale: f32,
    ) {
        let count = values.len();
        let query = &self.query[row * self.words..(row + N) * self.words];
        let sums = &mut self.sums[row * self.value_lanes..(row + N) * self.value_lanes];
        let mut factors = [0.0; ROWS];
        // SAFETY: as the caller's.
        unsafe {
            I::scores::<N>(query, &self.keys, count, &mut self.scores);
            for (r, factor) in factors.iter_mut().enumerate().take(N) {
                *factor = I::weigh(
                    &mut self.scores[r * BLOCK..(r + 1) * BLOCK],
                    count,
                    scale,
                    &mut self.maximum[row + r],
                    &mut self.sum[row + r],
                    &mut self.weights[r * BLOCK..(r + 1) * BLOCK],
                );
            }
            I::accumulate::<N>(values, offset, dim, &self.weights, &factors, sums);
        }
    }

    /// As [`Self::add`] for any number of rows.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_rows(
        &mut self,
        rows: Range<usize>,
        values: &[*const I::Element],
        offset: usize,
        dim: usize,
        scale: f32,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: as the caller's.
            unsafe {
                match rows.end - row {
                    1 => self.add::<1>(row, values, offset, dim, scale),
                    2 => self.add::<2>(row, values, offset, dim, scale),
                    3 => self.add::<3>(row, values, offset, dim, scale),
                    _ => self.add::<4>(row, values, offset, dim, scale),
                }
            }
            row += ROWS;
        }
    }
}

/// Up to a block of slots: where their keys and values are.
struct Block<I: Inner> {
    keys: [*const I::Element; BLOCK],
    values: [*const I::Element; BLOCK],
    count: usize,
}

impl<I: Inner> Block<I> {
    /// The first block of `slots`. What will be read next is asked for on the way: this block's values and the next block's
    /// keys. Slots lie anywhere, so the machine cannot guess them.
    #[inline(always)]
    fn new(tensors: &Tensors, heads: Heads, kv_heads: &Range<usize>, slots: &[u32]) -> Self {
        let mut block = Self {
            keys: [std::ptr::null(); BLOCK],
            values: [std::ptr::null(); BLOCK],
            count: slots.len().min(BLOCK),
        };
        let (keys, values) = (
            tensors.key as *const I::Element,
            tensors.value as *const I::Element,
        );
        for (i, &slot) in slots.iter().take(BLOCK).enumerate() {
            block.keys[i] = keys.wrapping_add(slot as usize * tensors.key_stride);
            block.values[i] = values.wrapping_add(slot as usize * tensors.value_stride);
            let value = block.values[i].wrapping_add(kv_heads.start * heads.value_dim);
            fetch(value, kv_heads.len() * heads.value_dim);
            if let Some(&next) = slots.get(i + BLOCK) {
                let key = next as usize * tensors.key_stride + kv_heads.start * heads.key_dim;
                fetch(keys.wrapping_add(key), kv_heads.len() * heads.key_dim);
            }
        }
        block
    }
}

/// Runs a task.
///
/// # Safety
/// As [`super::attend`].
#[inline(always)]
pub(super) unsafe fn run<I: Inner>(task: &Task<'_>) {
    let Task {
        plan,
        heads,
        tensors,
        tile,
        ref kv_heads,
        ..
    } = *task;
    let request = plan.requests[tile.request];
    let group = heads.query / heads.key_value;
    let tokens = tile.to - tile.from;
    let mut scratch = Scratch::<I>::new(kv_heads.len() * tokens * group, heads);
    // A query row's place in the scratch, in the queries and in the output.
    let places = kv_heads.clone().enumerate().flat_map(|(kv, kv_head)| {
        (0..tokens).flat_map(move |token| {
            (0..group).map(move |head| {
                let at = (kv * tokens + token) * group + head;
                (
                    at,
                    request.first_row + tile.from + token,
                    kv_head * group + head,
                )
            })
        })
    });
    for (at, row, head) in places.clone() {
        let to = &mut scratch.query[at * scratch.words..(at + 1) * scratch.words];
        let from = row * tensors.query_stride + head * heads.key_dim;
        // SAFETY: the row belongs to the plan and the head to the row.
        unsafe {
            I::load_query(
                (tensors.query as *const I::Element).add(from),
                heads.key_dim,
                to,
            )
        };
    }
    // SAFETY: as the caller's.
    unsafe { walk(task, &request, &mut scratch) };
    for (at, row, head) in places {
        let sums = &scratch.sums[at * scratch.value_lanes..(at + 1) * scratch.value_lanes];
        let to = row * tensors.output_stride + head * heads.value_dim;
        // SAFETY: this task alone writes its heads in its rows.
        unsafe {
            let to = (tensors.output as *mut I::Element).add(to);
            I::store(sums, scratch.sum[at], heads.value_dim, to);
        }
    }
}

/// Takes the tile's rows over all blocks of their visible sequences.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn walk<I: Inner>(task: &Task<'_>, request: &Request, scratch: &mut Scratch<I>) {
    let Task {
        plan,
        heads,
        tensors,
        scale,
        tile,
        ref kv_heads,
    } = *task;
    let slots = &plan.slots[request.slots..request.slots + request.prefix + request.rows];
    let group = heads.query / heads.key_value;
    let rows = (tile.to - tile.from) * group;
    let sight = plan.sight(request);
    // Positions that all rows of the tile see.
    let shared = match sight {
        Sight::Causal => request.prefix + tile.from + 1,
        Sight::Tree(_) => request.prefix,
    };
    let whole = shared / BLOCK * BLOCK;
    for start in (0..whole).step_by(BLOCK) {
        let block = Block::<I>::new(tensors, heads, kv_heads, &slots[start..]);
        for (kv, kv_head) in kv_heads.clone().enumerate() {
            // SAFETY: the slots are in the pool.
            unsafe {
                I::load_keys(
                    &block.keys,
                    kv_head * heads.key_dim,
                    heads.key_dim,
                    &mut scratch.keys,
                );
                let rows = kv * rows..(kv + 1) * rows;
                scratch.add_rows(
                    rows,
                    &block.values,
                    kv_head * heads.value_dim,
                    heads.value_dim,
                    scale,
                );
            }
        }
    }
    match sight {
        Sight::Causal => {
            let end = request.prefix + tile.to;
            for start in (whole..end).step_by(BLOCK) {
                let block = Block::<I>::new(tensors, heads, kv_heads, &slots[start..end]);
                for (kv, kv_head) in kv_heads.clone().enumerate() {
                    let keys = &block.keys[..block.count];
                    // SAFETY: the slots are in the pool.
                    unsafe {
                        I::load_keys(
                            keys,
                            kv_head * heads.key_dim,
                            heads.key_dim,
                            &mut scratch.keys,
                        )
                    };
                    for row in tile.from..tile.to {
                        let seen = (request.prefix + row + 1)
                            .saturating_sub(start)
                            .min(block.count);
                        if seen > 0 {
                            let at = kv * rows + (row - tile.from) * group;
                            let values = &block.values[..seen];
                            let offset = kv_head * heads.value_dim;
                            // SAFETY: as above.
                            unsafe {
                                scratch.add_rows(
                                    at..at + group,
                                    values,
                                    offset,
                                    heads.value_dim,
                                    scale,
                                )
                            };
                        }
                    }
                }
            }
        }
        Sight::Tree(mask) => {
            let mut visible = Vec::with_capacity(request.prefix - whole + request.rows);
            for row in tile.from..tile.to {
                visible.clear();
                visible.extend_from_slice(&slots[whole..request.prefix]);
                let sees = &mask[row * request.rows..][..=row];
                let drafts = slots[request.prefix..]
                    .iter()
                    .zip(sees)
                    .filter(|(_, sees)| **sees);
                visible.extend(drafts.map(|(&slot, _)| slot));
                for start in (0..visible.len()).step_by(BLOCK) {
                    let block = Block::<I>::new(tensors, heads, kv_heads, &visible[start..]);
                    let (keys, values) = (&block.keys[..block.count], &block.values[..block.count]);
                    for (kv, kv_head) in kv_heads.clone().enumerate() {
                        let at = kv * rows + (row - tile.from) * group;
                        let offset = kv_head * heads.value_dim;
                        // SAFETY: the slots are in the pool.
                        unsafe {
                            I::load_keys(
                                keys,
                                kv_head * heads.key_dim,
                                heads.key_dim,
                                &mut scratch.keys,
                            );
                            scratch.add_rows(
                                at..at + group,
                                values,
                                offset,
                                heads.value_dim,
                                scale,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Runs a task with the inner loops of `isa`.
///
/// # Safety
/// As [`super::attend`].
pub(super) unsafe fn dispatch(task: &Task<'_>, dtype: Dtype, isa: Isa) {
    // SAFETY: the caller checked that the machine has `isa`.
    unsafe {
        match (isa, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16, Dtype::Bf16) => super::avx512::run_bf16(task),
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => lanes::run_avx512_f32(task),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Dtype::Bf16) => lanes::run_avx512_bf16(task),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32) => lanes::run_avx2_f32(task),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16) => lanes::run_avx2_bf16(task),
            (_, Dtype::F32) => lanes::run_portable_f32(task),
            (_, Dtype::Bf16) => lanes::run_portable_bf16(task),
        }
    }
}

//! The walk over blocks of keys, common to all instruction sets.
//!
//! Per block and row: scores, the running maximum, weights `exp2(score - maximum)`, then sum and weighted values, rescaled
//! when the maximum rose (online softmax). A block's boundaries depend only on positions in the row's visible sequence.

use super::{BLOCK, Dtype, Heads, Isa, Plan, Request, Sight, Tensors, Tile, lanes};

/// Rows that share loads in the inner loops.
pub(super) const ROWS: usize = 4;

/// A tile and key-value head of a step.
pub(super) struct Task<'a> {
    pub plan: &'a Plan,
    pub heads: Heads,
    pub tensors: &'a Tensors,
    /// Times log2(e), as weights are powers of two.
    pub scale: f32,
    pub tile: Tile,
    pub kv_head: usize,
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

    /// Writes keys as words, transposed to `[word][BLOCK]`; columns from `keys.len()` up to the next multiple of 16 are zero.
    ///
    /// # Safety
    /// Every pointer is valid for `dim` elements.
    unsafe fn load_keys(keys: &[*const Self::Element], dim: usize, to: &mut [Self::Word]);

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

    /// `sums[r] = sums[r] * factor[r] + sum over keys of weight * value`, keys in order.
    ///
    /// # Safety
    /// Every pointer is valid for `dim` elements.
    unsafe fn accumulate<const N: usize>(
        values: &[*const Self::Element],
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

/// Working memory of one tile.
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
    /// The pointers are valid for `dim` elements; the instruction set is there.
    #[inline(always)]
    unsafe fn add<const N: usize>(
        &mut self,
        row: usize,
        values: &[*const I::Element],
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
            I::accumulate::<N>(values, dim, &self.weights, &factors, sums);
        }
    }

    /// As [`Self::add`] for any number of rows.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_rows(
        &mut self,
        rows: std::ops::Range<usize>,
        values: &[*const I::Element],
        dim: usize,
        scale: f32,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: as the caller's.
            unsafe {
                match rows.end - row {
                    1 => self.add::<1>(row, values, dim, scale),
                    2 => self.add::<2>(row, values, dim, scale),
                    3 => self.add::<3>(row, values, dim, scale),
                    _ => self.add::<4>(row, values, dim, scale),
                }
            }
            row += ROWS;
        }
    }
}

/// Where a key-value head's elements are.
struct Source<E> {
    key: *const E,
    value: *const E,
    key_stride: usize,
    value_stride: usize,
}

impl<E> Source<E> {
    /// # Safety
    /// The slots are in the pool.
    #[inline(always)]
    unsafe fn locate(
        &self,
        slots: &[u32],
        keys: &mut [*const E; BLOCK],
        values: &mut [*const E; BLOCK],
    ) {
        for (i, &slot) in slots.iter().enumerate() {
            // SAFETY: the plan checked every slot against the pool.
            unsafe {
                keys[i] = self.key.add(slot as usize * self.key_stride);
                values[i] = self.value.add(slot as usize * self.value_stride);
            }
        }
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
        kv_head,
        ..
    } = *task;
    let request: Request = plan.requests[tile.request];
    let slots = &plan.slots[request.slots..request.slots + request.prefix + request.rows];
    let group = heads.query / heads.key_value;
    let mut scratch = Scratch::<I>::new((tile.to - tile.from) * group, heads);
    // SAFETY: the offsets of a key-value head lie within a slot.
    let source = unsafe {
        Source {
            key: (tensors.key as *const I::Element).add(kv_head * heads.key_dim),
            value: (tensors.value as *const I::Element).add(kv_head * heads.value_dim),
            key_stride: tensors.key_stride,
            value_stride: tensors.value_stride,
        }
    };
    for row in tile.from..tile.to {
        let token =
            (request.first_row + row) * tensors.query_stride + kv_head * group * heads.key_dim;
        for head in 0..group {
            let at = ((row - tile.from) * group + head) * scratch.words;
            let to = &mut scratch.query[at..at + scratch.words];
            // SAFETY: the row belongs to the plan and the head to the row.
            unsafe {
                I::load_query(
                    (tensors.query as *const I::Element).add(token + head * heads.key_dim),
                    heads.key_dim,
                    to,
                )
            };
        }
    }

    // SAFETY: slots come from the plan, pointers from the pool.
    unsafe { walk(task, &request, slots, &source, &mut scratch) };

    for row in tile.from..tile.to {
        let token =
            (request.first_row + row) * tensors.output_stride + kv_head * group * heads.value_dim;
        for head in 0..group {
            let at = (row - tile.from) * group + head;
            let sums = &scratch.sums[at * scratch.value_lanes..(at + 1) * scratch.value_lanes];
            // SAFETY: this task alone writes the heads of its group in its rows.
            unsafe {
                let to = (tensors.output as *mut I::Element).add(token + head * heads.value_dim);
                I::store(sums, scratch.sum[at], heads.value_dim, to);
            }
        }
    }
}

/// Takes the tile's rows over all blocks of their visible sequences.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn walk<I: Inner>(
    task: &Task<'_>,
    request: &Request,
    slots: &[u32],
    source: &Source<I::Element>,
    scratch: &mut Scratch<I>,
) {
    let Task {
        plan,
        heads,
        scale,
        tile,
        ..
    } = *task;
    let group = heads.query / heads.key_value;
    let mut keys = [std::ptr::null(); BLOCK];
    let mut values = [std::ptr::null(); BLOCK];
    let sight = plan.sight(request);
    let rows = (tile.to - tile.from) * group;
    // Positions that all rows of the tile see.
    let shared = match sight {
        Sight::Causal => request.prefix + tile.from + 1,
        Sight::Tree(_) => request.prefix,
    };
    let whole = shared / BLOCK * BLOCK;
    for block in slots[..whole].chunks_exact(BLOCK) {
        // SAFETY: the slots are in the pool.
        unsafe {
            source.locate(block, &mut keys, &mut values);
            I::load_keys(&keys, heads.key_dim, &mut scratch.keys);
            scratch.add_rows(0..rows, &values, heads.value_dim, scale);
        }
    }
    match sight {
        Sight::Causal => {
            let end = request.prefix + tile.to;
            for start in (whole..end).step_by(BLOCK) {
                let block = &slots[start..end.min(start + BLOCK)];
                // SAFETY: the slots are in the pool.
                unsafe {
                    source.locate(block, &mut keys, &mut values);
                    I::load_keys(&keys[..block.len()], heads.key_dim, &mut scratch.keys);
                }
                for row in tile.from..tile.to {
                    let seen = (request.prefix + row + 1)
                        .saturating_sub(start)
                        .min(block.len());
                    if seen > 0 {
                        let at = (row - tile.from) * group;
                        // SAFETY: as above.
                        unsafe {
                            scratch.add_rows(
                                at..at + group,
                                &values[..seen],
                                heads.value_dim,
                                scale,
                            )
                        };
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
                visible.extend(
                    slots[request.prefix..]
                        .iter()
                        .zip(sees)
                        .filter(|(_, sees)| **sees)
                        .map(|(slot, _)| *slot),
                );
                let at = (row - tile.from) * group;
                for block in visible.chunks(BLOCK) {
                    // SAFETY: the slots are in the pool.
                    unsafe {
                        source.locate(block, &mut keys, &mut values);
                        I::load_keys(&keys[..block.len()], heads.key_dim, &mut scratch.keys);
                        scratch.add_rows(
                            at..at + group,
                            &values[..block.len()],
                            heads.value_dim,
                            scale,
                        );
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
            (Isa::Avx512Bf16, Dtype::Bf16) => super::avx512::run_bf16(task),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => lanes::run_avx512_f32(task),
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

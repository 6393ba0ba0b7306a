//! Attention over a paged key-value pool, read in place.
//!
//! The unit is a *row*: one query token of one request. It attends to its visible sequence: the request's tokens before the
//! step, then those of the step's own tokens it may see (all up to itself, or its ancestors in a draft tree). Keys are taken
//! in blocks of [`BLOCK`], counted along that visible sequence and not along the pool, and every sum over keys runs in the
//! sequence's order. So a row has the same bits as a decode row, as a verify row of any chain or tree, and in a prefill.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod lanes;

use crate::machine::{Dtype, Isa};
use crate::{Error, pool, rows};

/// Keys per block of the online softmax.
pub const BLOCK: usize = 64;

/// The widest head, in elements.
pub const MAX_HEAD_DIM: usize = 1024;

/// Query rows (tokens x heads per key-value head) that share one pass over the keys.
const TILE_ROWS: usize = 48;

/// Multiply-adds below which waking a helper thread costs more than it saves.
const PARALLEL_WORK: usize = 1 << 19;

/// What all layers of a model have in common.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    query: usize,
    key_value: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Heads {
    /// Counts of query and key-value heads, and elements of a query or key head and of a value or output head.
    ///
    /// # Errors
    /// Counts or sizes that make no sense.
    pub fn new(
        query: usize,
        key_value: usize,
        key_dim: usize,
        value_dim: usize,
    ) -> Result<Self, Error> {
        if key_value == 0 || query == 0 || !query.is_multiple_of(key_value) {
            return Err(Error::new(format!(
                "query heads ({query}) must be a positive multiple of key-value heads ({key_value})"
            )));
        }
        for (name, dim) in [("key", key_dim), ("value", value_dim)] {
            if dim == 0 || dim > MAX_HEAD_DIM {
                return Err(Error::new(format!(
                    "{name} head dimension {dim} is outside 1..={MAX_HEAD_DIM}"
                )));
            }
        }
        Ok(Self {
            query,
            key_value,
            key_dim,
            value_dim,
        })
    }
}

/// Which of the step's tokens a row sees beside the request's earlier ones.
#[derive(Debug, Clone, Copy)]
enum Sight<'a> {
    /// All up to itself: decode, extend, chains.
    Causal,
    /// Row i sees token j iff `mask[i * rows + j]` and j <= i. Rows are numbered parents first.
    Tree(&'a [bool]),
}

/// One request's share of a step.
#[derive(Debug, Clone, Copy)]
struct Request {
    /// Where its slots begin in `Plan::slots`.
    slots: usize,
    /// Tokens before the step.
    prefix: usize,
    /// Its rows in the step, and the first one's number.
    rows: usize,
    first_row: usize,
    /// Where its mask begins in `Plan::mask`, if it has one.
    mask: Option<usize>,
}

/// Rows of one request that are worked on together.
#[derive(Debug, Clone, Copy)]
struct Tile {
    request: usize,
    from: usize,
    to: usize,
}

/// A batch as the kernel needs it, made once per forward pass and used by every layer.
#[derive(Debug, Clone)]
pub struct Plan {
    slots: Vec<u32>,
    /// Where the step's own keys and values go, row by row.
    new_slots: Vec<u32>,
    mask: Vec<bool>,
    requests: Vec<Request>,
    rows: usize,
    /// Visible keys summed over rows: the work per head and element.
    visible: usize,
}

/// A batch as the engine describes it.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Pool slot of each token, request after request: `prefix[i] + rows[i]` entries each.
    pub slots: &'a [u32],
    /// Tokens before the step, per request.
    pub prefix: &'a [usize],
    /// Rows in the step, per request.
    pub rows: &'a [usize],
    /// Who sees whom among a request's rows, `rows[i] * rows[i]` entries each; none for causal rows.
    pub mask: Option<&'a [bool]>,
    /// Pool slot of each row, for [`store`]; may be empty if that is not used.
    pub new_slots: &'a [u32],
    /// Slots in the pool.
    pub pool_slots: usize,
}

impl Plan {
    /// Takes a batch over, checking every slot.
    ///
    /// # Errors
    /// Lengths that do not fit each other, or a slot outside the pool.
    pub fn new(batch: Batch<'_>) -> Result<Self, Error> {
        let Batch {
            slots,
            prefix,
            rows,
            mask,
            new_slots,
            pool_slots,
        } = batch;
        if prefix.len() != rows.len() {
            return Err(Error::new(format!(
                "prefix lengths are given for {} requests, rows for {}",
                prefix.len(),
                rows.len()
            )));
        }
        let mut requests = Vec::with_capacity(rows.len());
        let (mut slot, mut row, mut masked, mut visible) = (0usize, 0usize, 0usize, 0usize);
        for (&prefix, &rows) in prefix.iter().zip(rows) {
            requests.push(Request {
                slots: slot,
                prefix,
                rows,
                first_row: row,
                mask: mask.map(|_| masked),
            });
            slot += prefix + rows;
            row += rows;
            masked += rows * rows;
            visible += rows * (prefix + rows.div_ceil(2));
        }
        if slots.len() != slot {
            return Err(Error::new(format!(
                "{} slots are given, {slot} needed (prefix + rows of every request)",
                slots.len()
            )));
        }
        if let Some(mask) = mask.filter(|mask| mask.len() != masked) {
            return Err(Error::new(format!(
                "the mask has {} entries, {masked} needed (rows x rows of every request)",
                mask.len()
            )));
        }
        if !new_slots.is_empty() && new_slots.len() != row {
            return Err(Error::new(format!(
                "{} new slots are given for {row} rows",
                new_slots.len()
            )));
        }
        let mut all = slots.iter().chain(new_slots);
        if let Some(bad) = all.find(|&&slot| slot as usize >= pool_slots) {
            return Err(Error::new(format!(
                "slot {bad} is outside the pool of {pool_slots} slots"
            )));
        }
        Ok(Self {
            slots: slots.to_vec(),
            new_slots: new_slots.to_vec(),
            mask: mask.unwrap_or_default().to_vec(),
            requests,
            rows: row,
            visible,
        })
    }

    /// Rows of the step over all requests.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn tiles(&self, rows_per_tile: usize) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for (request, r) in self.requests.iter().enumerate() {
            for from in (0..r.rows).step_by(rows_per_tile) {
                tiles.push(Tile {
                    request,
                    from,
                    to: (from + rows_per_tile).min(r.rows),
                });
            }
        }
        tiles
    }

    fn sight(&self, request: &Request) -> Sight<'_> {
        match request.mask {
            None => Sight::Causal,
            Some(at) => Sight::Tree(&self.mask[at..at + request.rows * request.rows]),
        }
    }
}

/// Addresses and strides of one layer's tensors. Strides are in elements; heads adjoin within a row.
#[derive(Debug, Clone, Copy)]
pub struct Tensors {
    /// Queries `[rows, query heads, key_dim]`.
    pub query: usize,
    /// From one query row to the next.
    pub query_stride: usize,
    /// Keys `[pool slots, key-value heads, key_dim]`.
    pub key: usize,
    /// From one key slot to the next.
    pub key_stride: usize,
    /// Values `[pool slots, key-value heads, value_dim]`.
    pub value: usize,
    /// From one value slot to the next.
    pub value_stride: usize,
    /// Results `[rows, query heads, value_dim]`.
    pub output: usize,
    /// From one result row to the next.
    pub output_stride: usize,
}

/// Addresses and strides (in elements) of a step's own keys or values and of the pool they go to.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// `[rows, key-value heads, dim]`.
    pub from: usize,
    /// From one row to the next.
    pub from_stride: usize,
    /// `[pool slots, key-value heads, dim]`.
    pub to: usize,
    /// From one slot to the next.
    pub to_stride: usize,
}

/// Writes a layer's new keys and values to the pool, at the plan's new slots.
///
/// # Errors
/// The plan has no slot for each row.
///
/// # Safety
/// The tensors are live, of `dtype`, of the shapes [`Transfer`] states, and ours alone meanwhile.
pub unsafe fn store(
    plan: &Plan,
    heads: Heads,
    dtype: Dtype,
    keys: Transfer,
    values: Transfer,
) -> Result<(), Error> {
    if plan.new_slots.len() != plan.rows {
        return Err(Error::new(format!(
            "the plan was made without new_slots; give one for each of its {} rows",
            plan.rows
        )));
    }
    let size = dtype.size();
    for (transfer, dim) in [(keys, heads.key_dim), (values, heads.value_dim)] {
        let Transfer {
            from,
            from_stride,
            to,
            to_stride,
        } = transfer;
        let bytes = heads.key_value * dim * size;
        // SAFETY: the plan checked its slots; the rest is the caller's.
        unsafe {
            rows::scatter_rows(
                from,
                from_stride * size,
                to,
                to_stride * size,
                bytes,
                &plan.new_slots,
            )
        };
    }
    Ok(())
}

/// Attention of one layer: `softmax(scale q k) v` for every row of `plan`, into `tensors.output`.
///
/// # Safety
/// `isa` is one of [`Isa::available`]. Every address points to a live tensor of `dtype` and of the shape [`Tensors`] states,
/// for the plan's rows and all slots of the pool it was made for. Nobody writes to them, or reads the output, meanwhile.
pub unsafe fn attend(
    plan: &Plan,
    heads: Heads,
    dtype: Dtype,
    tensors: &Tensors,
    scale: f32,
    threads: usize,
    isa: Isa,
) {
    let group = heads.query / heads.key_value;
    let tiles = plan.tiles((TILE_ROWS / group).max(1));
    let work = plan.visible * heads.query * (heads.key_dim + heads.value_dim);
    let threads = if work < PARALLEL_WORK { 1 } else { threads };
    // A slot's heads adjoin, so taking them together reads memory in order. They part only to occupy the threads.
    let share = if tiles.len() >= 2 * threads || threads == 1 {
        heads.key_value
    } else {
        1
    };
    let shares = heads.key_value / share;
    pool::run(threads, tiles.len() * shares, |item| {
        let first = item % shares * share;
        let task = kernel::Task {
            plan,
            heads,
            tensors,
            scale: scale * std::f32::consts::LOG2_E,
            tile: tiles[item / shares],
            kv_heads: first..first + share,
        };
        // SAFETY: the caller vouches for the tensors and the instruction set; items write to disjoint output.
        unsafe { kernel::dispatch(&task, dtype, isa) };
    });
}

#[cfg(test)]
mod tests;

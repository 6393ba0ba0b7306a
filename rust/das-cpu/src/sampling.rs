//! Seeded sampling: the Gumbel-max trick as an exponential race.
//!
//! SGLang's `multinomial_with_seed` takes the argmax of `log p - log E` with `E = -log u` and
//! `u = hash(seed, position, column) / (2^32 - 1)`. The same column has the smallest `E / p`, and since `E >= 1 - u`, a column can
//! beat the best ratio `c` so far only if `1 - u < p c`: an integer hash and a compare. The few contenders that are left within
//! rounding of the best are ranked by the engine's own formula, for which the caller takes their logarithms as the engine does.
//!
//! While a row is at hand, its most probable tokens are taken from it too, if they are asked for.

use crate::hash::{finish, murmur, row_state, scramble_step};
use crate::likeliest::{self, Likeliest};
use crate::machine::Isa;
use crate::{Error, pool};

const LANES: usize = 16;
const HASH_MAX: f64 = u32::MAX as f64;

/// How far rounding (float32 logarithms of probabilities, float32 bounds) may move a ratio.
const SLACK: f64 = 4e-5;

/// The exponential variate of a hash, clamped as in the engine.
#[inline]
fn exponential(hash: u32) -> f64 {
    let log = (f64::from(hash) / HASH_MAX).ln();
    -log.clamp(f64::MIN, -(0.5f64.powi(32)))
}

/// The engine's score of a column: log-probability plus Gumbel noise.
#[inline]
fn score(log_probability: f64, hash: u32) -> f64 {
    log_probability - exponential(hash).ln()
}

/// A matrix of probabilities by address: rows of `columns` float32, `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Address of the first element.
    pub address: usize,
    /// Elements in a row.
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Rows {
    /// # Safety
    /// Row `i` is within a live float32 tensor that nobody writes to during `'a`.
    pub(crate) unsafe fn row<'a>(&self, i: usize) -> &'a [f32] {
        // SAFETY: the caller's.
        unsafe {
            std::slice::from_raw_parts(
                (self.address as *const f32).add(i * self.stride),
                self.columns,
            )
        }
    }
}

/// Columns that may be a row's sample, row after row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contenders {
    /// Where each row begins in `columns`; one more at the end.
    pub offsets: Vec<usize>,
    /// What the noise of each is keyed by.
    pub columns: Vec<u32>,
    /// The token of each.
    pub tokens: Vec<u32>,
    /// The probability of each.
    pub probabilities: Vec<f32>,
}

impl Contenders {
    fn join(rows: &[Seen]) -> Self {
        let mut all = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for row in rows {
            for contender in &row.contenders {
                all.columns.push(contender.column);
                all.tokens.push(contender.token);
                all.probabilities.push(contender.probability);
            }
            all.offsets.push(all.columns.len());
        }
        all
    }
}

#[derive(Debug, Clone, Copy)]
struct Contender {
    column: u32,
    token: u32,
    probability: f32,
}

/// What one look at a row gives.
#[derive(Debug, Default)]
struct Seen {
    contenders: Vec<Contender>,
    likeliest: Vec<(u32, f32)>,
}

/// Limits on the tokens of a row, as in the engine's sampling parameters.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// At most this many of the likeliest.
    pub top_k: usize,
    /// Only while the likelier ones hold no more than this mass.
    pub top_p: f32,
    /// Only at least this share of the highest probability.
    pub min_p: f32,
    /// Key the noise by rank among all tokens, likeliest first, instead of by token.
    pub by_rank: bool,
}

fn check(rows: &[usize], seeds: &[i64], positions: &[i64]) -> Result<(), Error> {
    if rows.len() != seeds.len() || rows.len() != positions.len() {
        return Err(Error::new(format!(
            "rows, seeds and positions must be equally many, not {}, {} and {}",
            rows.len(),
            seeds.len(),
            positions.len()
        )));
    }
    Ok(())
}

fn see_rows(
    threads: usize,
    rows: usize,
    cells: usize,
    see: impl Fn(usize) -> Seen + Sync,
) -> (Contenders, Likeliest) {
    let seen = pool::map(threads, rows, see);
    let likeliest = seen.iter().map(|row| row.likeliest.as_slice());
    (Contenders::join(&seen), Likeliest::join(likeliest, cells))
}

/// The columns of each row of `rows` that may win its race, in rising order: one, save for ties within rounding; and the row's
/// `cells` most probable tokens.
///
/// # Errors
/// Slices of different lengths.
///
/// # Safety
/// `matrix` holds every row named, is live, and is not written to meanwhile.
pub unsafe fn race(
    matrix: Rows,
    rows: &[usize],
    seeds: &[i64],
    positions: &[i64],
    cells: usize,
    threads: usize,
) -> Result<(Contenders, Likeliest), Error> {
    check(rows, seeds, positions)?;
    let isa = Isa::best();
    Ok(see_rows(threads, rows.len(), cells, |i| {
        // SAFETY: the caller's.
        let row = unsafe { matrix.row(rows[i]) };
        let state = row_state(seeds[i], positions[i]);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detected on this machine.
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe { race_avx512(row, state, cells) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detected on this machine.
            Isa::Avx2 => unsafe { race_avx2(row, state, cells) },
            _ => see_race(row, state, cells),
        }
    }))
}

/// # Safety
/// The machine has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn race_avx512(row: &[f32], state: u32, cells: usize) -> Seen {
    see_race(row, state, cells)
}

/// # Safety
/// The machine has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn race_avx2(row: &[f32], state: u32, cells: usize) -> Seen {
    see_race(row, state, cells)
}

#[inline(always)]
fn see_race(row: &[f32], state: u32, cells: usize) -> Seen {
    Seen {
        contenders: race_row(row, state),
        likeliest: likeliest::highest(row, cells, 0.0),
    }
}

/// Position and value of the highest probability; of the first NaN, if there is one.
#[inline(always)]
fn highest(row: &[f32]) -> (usize, f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] {
                chunk[lane]
            } else {
                lanes[lane]
            };
            nan[lane] |= chunk[lane].is_nan();
        }
    }
    let top = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let broken = nan.iter().any(|&n| n) || rest.iter().any(|p| p.is_nan());
    let at = row
        .iter()
        .position(|&p| if broken { p.is_nan() } else { p == top })
        .unwrap_or(0);
    (at, row.get(at).copied().unwrap_or(0.0))
}

#[inline(always)]
fn race_row(row: &[f32], state: u32) -> Vec<Contender> {
    let (start, top) = highest(row);
    let at = |column: usize| Contender {
        column: column as u32,
        token: column as u32,
        probability: row[column],
    };
    if row.is_empty() {
        return Vec::new();
    }
    if top.is_nan() || top <= 0.0 {
        return vec![at(start)]; // As argmax over such scores.
    }
    let ratio = |column: usize| exponential(murmur(state, column as u32)) / f64::from(row[column]);
    let bound = |best: f64| (best * (1.0 + SLACK) * HASH_MAX) as f32;
    let mut best = ratio(start);
    let mut limit = bound(best);
    let mut found: Vec<(usize, f64)> = Vec::with_capacity(32);
    let mut consider = |column: usize, limit: &mut f32| {
        let ratio = ratio(column);
        if ratio <= best * (1.0 + SLACK) {
            found.push((column, ratio));
            if ratio < best {
                best = ratio;
                *limit = bound(best);
            }
        }
    };
    let mut scrambled = scramble_step(0);
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder();
    for (chunk, values) in whole.enumerate() {
        let mut passes = [0u32; LANES];
        let mut any = 0;
        for lane in 0..LANES {
            let above = !finish(state, scrambled.lane(lane)); // (1 - u) (2^32 - 1)
            passes[lane] = u32::from((above as f32) < values[lane] * limit);
            any |= passes[lane];
        }
        if any != 0 {
            for (lane, &passes) in passes.iter().enumerate() {
                if passes != 0 {
                    consider(chunk * LANES + lane, &mut limit);
                }
            }
        }
        scrambled.advance(LANES as u32);
    }
    for i in 0..rest.len() {
        let column = row.len() - rest.len() + i;
        if row[column] > 0.0 {
            consider(column, &mut limit);
        }
    }
    let last = best * (1.0 + SLACK);
    found
        .into_iter()
        .filter(|&(_, ratio)| ratio <= last)
        .map(|(column, _)| at(column))
        .collect()
}

/// The tokens of each row that its filter leaves, likeliest first, ties by token: all are contenders. And the `cells` most
/// probable of them, their probabilities those among the tokens left.
///
/// # Errors
/// Slices of different lengths.
///
/// # Safety
/// As [`race`].
pub unsafe fn filter(
    matrix: Rows,
    rows: &[usize],
    filters: &[Filter],
    cells: usize,
    threads: usize,
) -> Result<(Contenders, Likeliest), Error> {
    if rows.len() != filters.len() {
        return Err(Error::new(format!(
            "{} rows but {} filters are given",
            rows.len(),
            filters.len()
        )));
    }
    Ok(see_rows(threads, rows.len(), cells, |i| {
        // SAFETY: the caller's.
        let mut kept = filter_row(unsafe { matrix.row(rows[i]) }, filters[i]);
        let likeliest = share_of_kept(&kept, cells);
        if !filters[i].by_rank {
            kept.sort_unstable_by_key(|contender| contender.token);
        }
        Seen {
            contenders: kept,
            likeliest,
        }
    }))
}

/// The first `cells` of what a filter left, likeliest first, as probabilities of the distribution that is left.
fn share_of_kept(kept: &[Contender], cells: usize) -> Vec<(u32, f32)> {
    let total: f64 = kept.iter().map(|c| f64::from(c.probability)).sum();
    if total.is_nan() || total <= 0.0 {
        return Vec::new(); // a row no softmax gives
    }
    kept.iter()
        .take(cells)
        .map(|c| (c.token, (f64::from(c.probability) / total) as f32))
        .collect()
}

/// As SGLang's `top_k_top_p_min_p_sampling_from_probs_torch`: sort, then drop by rank, by mass before (cumulated in float64,
/// rounded to float32 as torch does), and by share of the highest. Only tokens that can survive are sorted.
fn filter_row(row: &[f32], filter: Filter) -> Vec<Contender> {
    const BUCKETS: usize = 1 << 11;
    let bucket = |p: f32| (p.to_bits() >> 20) as usize & (BUCKETS - 1);
    let (at, top) = highest(row);
    if row.is_empty() || top.is_nan() || top <= 0.0 {
        return row
            .get(at)
            .map(|&probability| Contender {
                column: at as u32,
                token: at as u32,
                probability,
            })
            .into_iter()
            .collect();
    }
    let mut count = [0usize; BUCKETS];
    let mut mass = [0f64; BUCKETS];
    for &p in row {
        count[bucket(p)] += 1;
        mass[bucket(p)] += f64::from(p);
    }
    let (mut lowest, mut counted, mut massed) = (bucket(top) + 1, 0, 0.0);
    // The margin covers what rounding may do to the sums below.
    while lowest > 0 && counted < filter.top_k && massed <= f64::from(filter.top_p) + 1e-5 {
        lowest -= 1;
        counted += count[lowest];
        massed += mass[lowest];
    }
    let threshold = top * filter.min_p;
    let mut order: Vec<u64> = Vec::with_capacity(counted);
    for (token, &p) in row.iter().enumerate() {
        if bucket(p) >= lowest && p > 0.0 {
            order.push(u64::from(!p.to_bits()) << 32 | token as u64);
        }
    }
    order.sort_unstable();
    let mut before = 0f64;
    let mut kept = Vec::new();
    for (rank, &key) in order.iter().take(filter.top_k).enumerate() {
        let token = key as u32;
        let probability = row[token as usize];
        before += f64::from(probability);
        if (before as f32) - probability <= filter.top_p && probability >= threshold {
            kept.push(Contender {
                column: if filter.by_rank { rank as u32 } else { token },
                token,
                probability,
            });
        }
    }
    kept
}

/// The winner of each row: the index within `columns` of the highest score, the first of equals.
///
/// `logs[i]` is the log-probability of `columns[i]`, `offsets` as in [`Contenders`].
///
/// # Errors
/// Slices that do not fit each other, or a row without contenders.
pub fn rank(
    offsets: &[usize],
    columns: &[u32],
    logs: &[f64],
    seeds: &[i64],
    positions: &[i64],
) -> Result<Vec<usize>, Error> {
    if offsets.len() != seeds.len() + 1
        || seeds.len() != positions.len()
        || columns.len() != logs.len()
    {
        return Err(Error::new(
            "offsets, columns, logs, seeds and positions do not fit each other",
        ));
    }
    let mut winners = Vec::with_capacity(seeds.len());
    for (i, bounds) in offsets.windows(2).enumerate() {
        if bounds[0] >= bounds[1] || bounds[1] > columns.len() {
            return Err(Error::new(format!("row {i} has no contenders")));
        }
        let state = row_state(seeds[i], positions[i]);
        let (mut best, mut winner) = (f64::NEG_INFINITY, bounds[0]);
        for at in bounds[0]..bounds[1] {
            let score = score(logs[at], murmur(state, columns[at]));
            if score > best {
                (best, winner) = (score, at);
            }
        }
        winners.push(winner);
    }
    Ok(winners)
}

#[cfg(test)]
mod tests;

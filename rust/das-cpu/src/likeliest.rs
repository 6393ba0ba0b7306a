//! The most probable tokens of a row: what is worth keeping of the distribution that a token was drawn from.

use crate::machine::Isa;
use crate::pool;
use crate::sampling::Rows;

const LANES: usize = 16;

/// The most probable tokens of some rows, `cells` of each row: likeliest first, equals by token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Likeliest {
    /// Token ids, row after row; -1 where a row has no more tokens.
    pub tokens: Vec<i32>,
    /// Their values; 0 in unused cells.
    pub values: Vec<f32>,
}

impl Likeliest {
    pub(crate) fn join<'a>(
        rows: impl ExactSizeIterator<Item = &'a [(u32, f32)]>,
        cells: usize,
    ) -> Self {
        let mut all = Self {
            tokens: vec![-1; rows.len() * cells],
            values: vec![0.0; rows.len() * cells],
        };
        for (i, row) in rows.enumerate() {
            for (j, &(token, value)) in row.iter().enumerate() {
                all.tokens[i * cells + j] = token as i32;
                all.values[i * cells + j] = value;
            }
        }
        all
    }
}

/// The `cells` highest values above `above` of each row of `rows`.
///
/// # Safety
/// `matrix` holds every row named, is live, and is not written to meanwhile.
pub unsafe fn likeliest(
    matrix: Rows,
    rows: &[usize],
    cells: usize,
    above: f32,
    threads: usize,
) -> Likeliest {
    let isa = Isa::best();
    let found = pool::map(threads, rows.len(), |i| {
        // SAFETY: the caller's.
        let row = unsafe { matrix.row(rows[i]) };
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detected on this machine.
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe {
                highest_avx512(row, cells, above)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detected on this machine.
            Isa::Avx2 => unsafe { highest_avx2(row, cells, above) },
            _ => highest(row, cells, above),
        }
    });
    Likeliest::join(found.iter().map(Vec::as_slice), cells)
}

/// # Safety
/// The machine has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn highest_avx512(row: &[f32], cells: usize, above: f32) -> Vec<(u32, f32)> {
    highest(row, cells, above)
}

/// # Safety
/// The machine has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn highest_avx2(row: &[f32], cells: usize, above: f32) -> Vec<(u32, f32)> {
    highest(row, cells, above)
}

/// The `cells` highest values above `above` with their places, the highest first, the first of equals first.
///
/// Once the list is full, few values pass its last one, so most of a row costs a compare.
#[inline(always)]
pub(crate) fn highest(row: &[f32], cells: usize, above: f32) -> Vec<(u32, f32)> {
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(cells + 1);
    if cells == 0 {
        return found;
    }
    let mut limit = above;
    let mut consider = |at: usize, value: f32, limit: &mut f32| {
        if value > *limit {
            let place = found.partition_point(|&(_, other)| other >= value);
            found.insert(place, (at as u32, value));
            found.truncate(cells);
            if found.len() == cells {
                *limit = found[cells - 1].1;
            }
        }
    };
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder();
    for (chunk, values) in whole.enumerate() {
        let mut any = false;
        for &value in values {
            any |= value > limit;
        }
        if any {
            for (lane, &value) in values.iter().enumerate() {
                consider(chunk * LANES + lane, value, &mut limit);
            }
        }
    }
    for (i, &value) in rest.iter().enumerate() {
        consider(row.len() - rest.len() + i, value, &mut limit);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{highest, likeliest};
    use crate::sampling::Rows;

    fn sorted(row: &[f32], cells: usize, above: f32) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> = row
            .iter()
            .enumerate()
            .filter(|&(_, &value)| value > above)
            .map(|(at, &value)| (at as u32, value))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(cells);
        all
    }

    #[test]
    fn they_are_the_first_of_a_full_sort() {
        let mut state = 5u64;
        for round in 0..400 {
            let columns = [0, 1, 7, 16, 33, 1000][round % 6];
            let coarse = round % 3 == 0; // many equals
            let row: Vec<f32> = (0..columns)
                .map(|_| {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let value = (state >> 40) as f32 / (1 << 24) as f32 - 0.3;
                    if coarse {
                        (value * 10.0).round()
                    } else {
                        value
                    }
                })
                .collect();
            let above = [0.0, f32::NEG_INFINITY][round % 2];
            let cells = round % 9;
            let wanted = sorted(&row, cells, above);
            assert_eq!(highest(&row, cells, above), wanted, "round {round}");
            let matrix = Rows {
                address: row.as_ptr() as usize,
                columns,
                stride: columns,
            };
            // SAFETY: the matrix is this one row.
            let found = unsafe { likeliest(matrix, &[0, 0], cells, above, 1) };
            let tokens: Vec<i32> = wanted.iter().map(|&(token, _)| token as i32).collect();
            assert_eq!(found.tokens[..wanted.len()], tokens);
            assert_eq!(found.tokens.len(), 2 * cells);
            assert!(found.tokens[wanted.len()..cells].iter().all(|&t| t == -1));
            assert_eq!(found.tokens[..cells], found.tokens[cells..]);
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let mut row = [0.01f32; 40];
        row[3] = f32::NAN;
        row[20] = 0.5;
        assert_eq!(highest(&row, 2, 0.0), [(20, 0.5), (0, 0.01)]);
    }
}

//! The race against the plain argmax, the filters against a full sort.

use super::*;

fn uniform(seed: &mut u64) -> f64 {
    *seed = seed
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*seed >> 11) as f64 / (1u64 << 53) as f64
}

/// Probabilities of very unequal sizes, some zero, some equal.
fn distribution(columns: usize, sharpness: f64, seed: &mut u64) -> Vec<f32> {
    let weights: Vec<f64> = (0..columns)
        .map(|column| match uniform(seed) {
            u if u < 0.05 && column > 0 => 0.0,
            u if u < 0.1 => 1.0,
            _ => (uniform(seed) * sharpness).exp(),
        })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

fn naive(row: &[f32], seed: i64, position: i64) -> usize {
    let state = row_state(seed, position);
    let mut best = (f64::NEG_INFINITY, 0);
    for (column, &p) in row.iter().enumerate() {
        let score = score(f64::from(p.ln()), murmur(state, column as u32));
        if score > best.0 {
            best = (score, column);
        }
    }
    best.1
}

fn winner(row: &[f32], seed: i64, position: i64) -> usize {
    let matrix = Rows {
        address: row.as_ptr() as usize,
        columns: row.len(),
        stride: row.len(),
    };
    // SAFETY: the matrix is this one row.
    let (found, _) = unsafe { race(matrix, &[0], &[seed], &[position], 0, 1).unwrap() };
    let logs: Vec<f64> = found
        .probabilities
        .iter()
        .map(|p| f64::from(p.ln()))
        .collect();
    let at = rank(&found.offsets, &found.columns, &logs, &[seed], &[position]).unwrap()[0];
    found.tokens[at] as usize
}

#[test]
fn the_race_finds_the_argmax() {
    let mut seed = 7;
    for round in 0..600 {
        let columns = [1, 2, 15, 16, 17, 100, 3000][round % 7];
        let row = distribution(columns, [0.0, 3.0, 40.0][round % 3], &mut seed);
        let (s, position) = (round as i64 * 7919 - 1000, round as i64);
        assert_eq!(
            winner(&row, s, position),
            naive(&row, s, position),
            "round {round}"
        );
    }
}

#[test]
fn rows_no_softmax_should_give_still_have_a_sample() {
    assert_eq!(winner(&[0.0; 40], 1, 1), 0);
    let mut broken = [0.01; 40];
    broken[33] = f32::NAN;
    assert_eq!(winner(&broken, 1, 1), 33);
    let mut one_hot = [0.0; 40];
    one_hot[39] = 1.0;
    assert_eq!(winner(&one_hot, 1, 1), 39);
    for row in [[0.0f32; 40], broken] {
        let matrix = Rows {
            address: row.as_ptr() as usize,
            columns: 40,
            stride: 40,
        };
        let everything = Filter {
            top_k: 8,
            top_p: 1.0,
            min_p: 0.0,
            by_rank: true,
        };
        // SAFETY: the matrix is this one row.
        let (_, likeliest) = unsafe { filter(matrix, &[0], &[everything], 8, 1).unwrap() };
        assert!(likeliest.values.iter().all(|&value| value == 0.0));
    }
}

#[test]
fn the_clamps_hold_at_both_ends() {
    assert_eq!(exponential(0), f64::MAX);
    assert_eq!(exponential(u32::MAX), 0.5f64.powi(32));
    assert!(score(f64::NEG_INFINITY, u32::MAX) == f64::NEG_INFINITY);
}

/// Sorts everything, then masks as the engine does.
fn filtered(row: &[f32], filter: Filter) -> Vec<(u32, u32)> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let mut sum = 0f64;
    let mut kept = Vec::new();
    for (rank, &token) in order.iter().enumerate() {
        sum += f64::from(row[token]);
        let drop = rank >= filter.top_k
            || (sum as f32) - row[token] > filter.top_p
            || row[token] < row[order[0]] * filter.min_p;
        if !drop && row[token] > 0.0 {
            kept.push((
                if filter.by_rank {
                    rank as u32
                } else {
                    token as u32
                },
                token as u32,
            ));
        }
    }
    if !filter.by_rank {
        kept.sort_by_key(|k| k.1);
    }
    kept
}

/// The most probable of the tokens kept, of the mass of those kept.
fn shares(row: &[f32], kept: &[(u32, u32)], cells: usize) -> Likeliest {
    let mut tokens: Vec<u32> = kept.iter().map(|&(_, token)| token).collect();
    tokens.sort_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        row[b].total_cmp(&row[a]).then(a.cmp(&b))
    });
    let total: f64 = tokens.iter().map(|&t| f64::from(row[t as usize])).sum();
    let share = |&token: &u32| (token, (f64::from(row[token as usize]) / total) as f32);
    let first: Vec<(u32, f32)> = tokens.iter().take(cells).map(share).collect();
    Likeliest::join([first.as_slice()].into_iter(), cells)
}

#[test]
fn the_race_tells_the_likeliest_tokens_too() {
    let mut seed = 3;
    for round in 0..100 {
        let columns = [1, 5, 40, 3000][round % 4];
        let row = distribution(columns, 4.0, &mut seed);
        let all: Vec<(u32, u32)> = (0..columns as u32)
            .filter(|&token| row[token as usize] > 0.0)
            .map(|token| (token, token))
            .collect();
        let matrix = Rows {
            address: row.as_ptr() as usize,
            columns,
            stride: columns,
        };
        // SAFETY: the matrix is this one row.
        let (_, found) = unsafe { race(matrix, &[0], &[1], &[2], 8, 1).unwrap() };
        let wanted = shares(&row, &all, 8);
        assert_eq!(found.tokens, wanted.tokens);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5;
        assert!(found.values.iter().zip(&wanted.values).all(near));
    }
}

#[test]
fn filters_keep_what_a_full_sort_keeps() {
    let mut seed = 11;
    for round in 0..600 {
        let columns = [1, 16, 100, 3000][round % 4];
        let row = distribution(columns, [0.0, 2.0, 30.0][round % 3], &mut seed);
        let top_k = [1, 2, 50, 1 << 30][(uniform(&mut seed) * 4.0) as usize];
        let top_p = [0.0, 0.1, 0.9, 0.999_999, 1.0][(uniform(&mut seed) * 5.0) as usize];
        let min_p = [0.0, -0.0, 0.1, 1.0][(uniform(&mut seed) * 4.0) as usize];
        let limits = Filter {
            top_k,
            top_p,
            min_p,
            by_rank: round % 2 == 0,
        };
        let matrix = Rows {
            address: row.as_ptr() as usize,
            columns,
            stride: columns,
        };
        // SAFETY: the matrix is this one row.
        let (found, likeliest) = unsafe { filter(matrix, &[0], &[limits], 8, 2).unwrap() };
        let got: Vec<(u32, u32)> = found
            .columns
            .iter()
            .copied()
            .zip(found.tokens.iter().copied())
            .collect();
        let kept = filtered(&row, limits);
        assert_eq!(got, kept, "{limits:?}");
        assert_eq!(likeliest, shares(&row, &kept, 8), "{limits:?}");
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    assert!(rank(&[0, 0], &[], &[], &[1], &[1]).is_err());
    assert!(rank(&[0, 1], &[1], &[0.0, 1.0], &[1], &[1]).is_err());
    let row = [1.0f32];
    let matrix = Rows {
        address: row.as_ptr() as usize,
        columns: 1,
        stride: 1,
    };
    // SAFETY: refused before anything is read.
    assert!(unsafe { race(matrix, &[0], &[1, 2], &[1], 0, 1) }.is_err());
}
